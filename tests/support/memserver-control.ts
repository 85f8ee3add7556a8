import { once } from "node:events";
import { PassThrough } from "node:stream";
import type { ControlAnswer, ControlEvent, ControlRequest } from "../../memserver/process/control.ts";
import { ControlServer } from "../../memserver/process/control-server.ts";
import { OpenImages } from "../../memserver/process/open-images.ts";
import { Peers } from "../../memserver/process/peers.ts";

type Reply = { id: unknown; answer?: unknown; error?: { code: string; message: string } };
type Attach = Extract<ControlRequest, { op: "attach" }>;

/** A memserver in this process, and what its runtime would say and hear. */
export class Controlled implements AsyncDisposable {
  /** What was no failure of what was asked for. */
  readonly trouble: unknown[] = [];
  readonly server: ControlServer;
  readonly events: ControlEvent[] = [];
  readonly #input = new PassThrough();
  readonly #images: OpenImages;
  readonly #peers: Peers;
  readonly #replies = new Map<unknown, (reply: Reply) => void>();
  #nextId = 1;
  #told = Promise.withResolvers<void>();

  /** @param keys - directory for the keys of the installation */
  constructor(keys: string) {
    const output = new PassThrough();
    let rest = "";
    output.setEncoding("utf8").on("data", (text: string) => {
      const lines = (rest + text).split("\n");
      rest = lines.pop() ?? "";
      for (const line of lines) this.#hear(JSON.parse(line));
    });
    const peers = new Peers({
      keys,
      emit: (event) => this.server.emit(event),
      onTrouble: (trouble) => {
        throw trouble;
      },
    });
    this.#peers = peers;
    this.#images = new OpenImages((hash, dir, holders) => peers.open(hash, dir, holders));
    this.server = new ControlServer({
      input: this.#input,
      output,
      images: this.#images,
      peers,
      onTrouble: this.trouble.push.bind(this.trouble),
    });
  }

  /** Says something, and returns what is answered. */
  async ask<Op extends ControlRequest["op"]>(
    request: Extract<ControlRequest, { op: Op }>,
  ): Promise<ControlAnswer<Op>> {
    const id = this.#nextId++;
    const { promise, resolve, reject } = Promise.withResolvers<ControlAnswer<Op>>();
    this.#replies.set(id, ({ answer, error }) => {
      if (error) reject(Object.assign(new Error(error.message), { code: error.code }));
      else resolve(answer as ControlAnswer<Op>);
    });
    this.say(`${JSON.stringify({ id, ...request })}\n`);
    return await promise;
  }

  /** Attaches a child that waits at this socket. */
  attach(child: string, image: string, socket: string, changes: Partial<Attach> = {}) {
    return this.ask<"attach">({
      ...{ op: "attach", child, image, socket, preempt: false, recover: false, measure: false },
      ...{ background: { afterMs: 1e8, bytesPerSecond: null }, workingSet: false },
      ...changes,
    });
  }

  /** Says these very bytes. */
  say(bytes: string | Uint8Array): void {
    this.#input.write(bytes);
  }

  /** Says no more. */
  end(): void {
    this.#input.end();
  }

  /** Waits for an event. */
  async told(event: ControlEvent["event"]): Promise<ControlEvent> {
    for (;;) {
      const found = this.events.find((one) => one.event === event);
      if (found) return found;
      await this.#told.promise;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.server.children[Symbol.asyncDispose]();
    await this.#images[Symbol.asyncDispose]();
    await this.#peers[Symbol.asyncDispose]();
    if (this.#input.closed) return;
    const closed = once(this.#input, "close");
    this.#input.destroy();
    await closed;
  }

  #hear(said: Reply | ControlEvent): void {
    if ("event" in said) this.events.push(said);
    else this.#replies.get(said.id)?.(said);
    this.#told.resolve();
    this.#told = Promise.withResolvers();
  }
}
