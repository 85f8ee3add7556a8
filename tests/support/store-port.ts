import { ManualClock } from "./jobs-clock.ts";
import { temporaryDirectory } from "./vm.ts";

/** One port of a store, on a place of its own. */
export interface PortUnderTest<Port> extends AsyncDisposable {
  readonly port: Port;
  readonly clock: ManualClock;
  /** Closes the store and opens it again, as a restart of the gateway does. */
  reopen(): Promise<void>;
}

/** Makes an empty store for one test. */
export type OpenPort<Port> = () => Promise<PortUnderTest<Port>>;

/** What opens a port in a directory; `stack` gets what has to be closed. */
export type OpenInDirectory<Port> = (
  dir: string,
  clock: ManualClock,
  stack: AsyncDisposableStack,
) => Port | Promise<Port>;

/** Makes ports in temporary directories. */
export function inDirectory<Port>(open: OpenInDirectory<Port>): () => Promise<PortInDirectory<Port>> {
  return async () => {
    const port = new PortInDirectory(open);
    await port.open();
    return port;
  };
}

export class PortInDirectory<Port> implements PortUnderTest<Port> {
  readonly clock = new ManualClock();
  readonly #directory = temporaryDirectory();
  readonly #open: OpenInDirectory<Port>;
  #stack = new AsyncDisposableStack();
  #port: Port | undefined;

  constructor(open: OpenInDirectory<Port>) {
    this.#open = open;
  }

  get dir(): string {
    return this.#directory.path;
  }

  get port(): Port {
    return this.#port!;
  }

  async open(): Promise<void> {
    this.#port = await this.#open(this.dir, this.clock, this.#stack);
  }

  async reopen(): Promise<void> {
    await this.#stack.disposeAsync();
    this.#stack = new AsyncDisposableStack();
    await this.open();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#stack.disposeAsync();
    this.#directory[Symbol.dispose]();
  }
}
