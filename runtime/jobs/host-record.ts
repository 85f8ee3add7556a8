import { getLogger } from "@logtape/logtape";
import type { SetAside } from "../api/mod.ts";
import type { HostRegistry } from "./ports.ts";
import type { SetAsideChange } from "./set-aside.ts";
import type { TaskRuntime } from "./task-runtime.ts";
import type { After } from "./timer.ts";

const HEARTBEAT_MS = 5000;
const logger = getLogger(["flurry", "jobs"]);

export interface HostRecordOptions {
  hosts: HostRegistry;
  id: string;
  runtime: TaskRuntime;
  after: After;
  running: () => number;
  /** A heartbeat was stored. */
  onBeat: () => void;
}

/**
 * Shows the host and what is set aside on it to people. What the store does not take is told again with the
 * next heartbeat.
 */
export class HostRecord implements AsyncDisposable {
  readonly #options: HostRecordOptions;
  readonly #untold = new Map<string, { kind: SetAside["kind"]; id: string; entry?: SetAside }>();
  #timer: Disposable | undefined;
  #telling: Promise<unknown> = Promise.resolve();
  #ended = false;

  constructor(options: HostRecordOptions) {
    this.#options = options;
  }

  async start(): Promise<void> {
    const { hosts, id, runtime } = this.#options;
    const { name, accel, cores, memoryBytes, slots } = runtime;
    await hosts.register({ id, name, accel, cores, memoryBytes, slots });
    this.#arm();
  }

  tell(change: SetAsideChange): void {
    const { kind, id } = change.change === "set aside" ? change.entry : change;
    const entry = change.change === "set aside" ? { entry: change.entry } : {};
    this.#untold.set(`${kind} ${id}`, { kind, id, ...entry });
    void this.beat();
  }

  /** Tells the store that the host is there. Whether it could be told. */
  beat(): Promise<boolean> {
    const beat = this.#telling.then(() => this.#beat());
    this.#telling = beat;
    return beat;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#ended = true;
    this.#timer?.[Symbol.dispose]();
    await this.#telling;
    try {
      await this.#options.hosts.leave(this.#options.id);
    } catch (error) {
      logger.warn("Cannot note that this host leaves: {error}", { error });
    }
  }

  async #beat(): Promise<boolean> {
    const { hosts, id, running, onBeat } = this.#options;
    if (this.#ended) return false;
    try {
      await hosts.heartbeat(id, running());
      for (const [key, told] of this.#untold) {
        if (told.entry) await hosts.setAside(id, told.entry);
        else await hosts.restore(id, told.kind, told.id);
        if (this.#untold.get(key) === told) this.#untold.delete(key);
      }
      onBeat();
      return true;
    } catch (error) {
      logger.warn("Cannot tell the store about this host: {error}", { error });
      return false;
    }
  }

  #arm(): void {
    this.#timer = this.#options.after(HEARTBEAT_MS, () => {
      void this.beat().then(() => {
        if (!this.#ended) this.#arm();
      });
    });
  }
}
