import type { Readable, Writable } from "node:stream";
import { LineBuffer } from "../../qmp/mod.ts";
import { Children, failureOf } from "./children.ts";
import {
  type ControlAnswer,
  type ControlEvent,
  type ControlRequest,
  MAX_LINE_BYTES,
  requestSchema,
} from "./control.ts";
import type { OpenImages } from "./open-images.ts";
import type { Peers } from "./peers.ts";

export interface ControlServerOptions {
  input: Readable;
  output: Writable;
  images: OpenImages;
  peers: Peers;
  /** Told what is no failure of what was asked for. */
  onTrouble: (error: unknown) => void;
}

/** Does what the runtime of a memserver asks for. */
export class ControlServer {
  /** Resolves when the runtime is gone, or says what this does not understand. */
  readonly closed: Promise<Error | undefined>;
  readonly children: Children;
  readonly #options: ControlServerOptions;
  readonly #lines = new LineBuffer(MAX_LINE_BYTES);
  readonly #close: (error?: Error) => void;

  constructor(options: ControlServerOptions) {
    this.#options = options;
    this.children = new Children((event) => this.emit(event), options.onTrouble);
    const { promise, resolve } = Promise.withResolvers<Error | undefined>();
    this.closed = promise;
    this.#close = (error) => resolve(error);
    options.input.on("data", (chunk: Uint8Array) => this.#read(chunk));
    options.input.on("end", () => this.#close());
    options.input.on("error", (error) => this.#close(error));
    options.output.on("error", (error) => this.#close(error));
    this.emit({ event: "ready" });
  }

  emit(event: ControlEvent): void {
    this.#write(event);
  }

  #read(chunk: Uint8Array): void {
    try {
      this.#lines.push(chunk);
      for (let line = this.#lines.next(); line !== undefined; line = this.#lines.next()) this.#line(line);
    } catch (error) {
      // Whoever says this is no runtime of ours.
      this.#close(error instanceof Error ? error : new Error(String(error)));
    }
  }

  #line(line: string): void {
    const { id, ...rest } = JSON.parse(line);
    const request = requestSchema.parse(rest);
    void this.#do(request).then(
      (answer) => this.#write({ id, answer }),
      (error) => this.#write({ id, error: failureOf(error) }),
    );
  }

  async #do(request: ControlRequest): Promise<ControlAnswer<ControlRequest["op"]>> {
    const { images, peers } = this.#options;
    switch (request.op) {
      case "open": {
        const { table, source } = await images.open(request.image, request.dir, request.holders);
        const { pages } = table;
        let dataPages = 0;
        for (let page = 0; page < pages; page++) if (!table.isZero(page)) dataPages += 1;
        return { pages, dataPages, complete: source.complete };
      }
      case "close":
        await images.close(request.image);
        return {};
      case "attach":
        return await this.children.attach(request, () => images.get(request.image));
      case "detach":
        await this.children.detach(request.child, request.keep);
        return {};
      case "stats":
        return this.children.stats(request.child);
      case "find":
        return await peers.find(request.key, request.holders);
      case "listen":
        return { port: await peers.listen(request, images) };
      case "ping":
        return {};
    }
  }

  #write(value: object): void {
    this.#options.output.write(`${JSON.stringify(value)}\n`);
  }
}
