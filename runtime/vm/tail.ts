import type { Readable } from "node:stream";

/** Keeps the last `limit` bytes of a stream, so that a guest that floods its console holds no memory. */
export class Tail {
  #chunks: Buffer[] = [];
  #size = 0;
  readonly #limit: number;

  constructor(stream: Readable, limit: number, onLine?: (line: string) => void) {
    this.#limit = limit;
    let partial = "";
    stream.on("data", (chunk: Buffer) => {
      this.#push(chunk);
      if (!onLine) return;
      const lines = (partial + chunk.toString("utf8")).split(/\r?\n/);
      partial = (lines.pop() ?? "").slice(-1024);
      for (const line of lines) onLine(line);
    });
    // The end of the pipe is the end of the process, which has its own event.
    stream.on("error", (error) => this.#push(Buffer.from(`[${error.message}]`)));
  }

  text(): string {
    return Buffer.concat(this.#chunks).subarray(-this.#limit).toString("utf8").trim();
  }

  #push(chunk: Buffer): void {
    this.#chunks.push(chunk);
    this.#size += chunk.length;
    while (this.#size - (this.#chunks[0]?.length ?? 0) >= this.#limit) {
      this.#size -= this.#chunks.shift()!.length;
    }
  }
}
