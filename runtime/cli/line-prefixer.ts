/** Longest line that is kept together; a longer one is shown in pieces. */
const MAX_LINE_CHARS = 64 * 1024;

/** Cuts the chunks of one output into whole lines of text, so that the outputs of many tasks do not mix. */
export class LinePrefixer {
  readonly #decoder = new TextDecoder();
  readonly #onLine: (line: string) => void;
  #partial = "";

  constructor(onLine: (line: string) => void) {
    this.#onLine = onLine;
  }

  write(chunk: Uint8Array): void {
    const lines = (this.#partial + this.#decoder.decode(chunk, { stream: true })).split("\n");
    this.#partial = lines.pop() ?? "";
    for (const line of lines) this.#onLine(line);
    if (this.#partial.length > MAX_LINE_CHARS) {
      this.#onLine(this.#partial);
      this.#partial = "";
    }
  }

  /** Gives out what stands without a newline at the end. */
  end(): void {
    this.#partial += this.#decoder.decode();
    if (this.#partial !== "") this.#onLine(this.#partial);
    this.#partial = "";
  }
}
