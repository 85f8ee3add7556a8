import type { TextSink } from "./output.ts";

/**
 * A stream of the process that tells when its reader is behind, so that whoever writes can wait
 * instead of piling up memory. Only the result of each write says so on every runtime: on Bun
 * `writableNeedDrain` is never set, and the callback of a write comes before its bytes are gone.
 */
export class PacedSink implements TextSink {
  readonly #stream: NodeJS.WriteStream;
  #drained: Promise<void> | undefined;

  constructor(stream: NodeJS.WriteStream) {
    this.#stream = stream;
  }

  get isTTY(): boolean {
    return this.#stream.isTTY === true;
  }

  get columns(): number {
    return this.#stream.columns;
  }

  /** Settles when there is room again; undefined while there is. */
  get drained(): Promise<void> | undefined {
    return this.#drained;
  }

  write(text: string | Uint8Array): void {
    if (this.#stream.write(text) || this.#drained) return;
    this.#drained = new Promise((resolve) => {
      this.#stream.once("drain", () => {
        this.#drained = undefined;
        resolve();
      });
    });
  }
}
