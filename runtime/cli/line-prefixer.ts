/** Longest line that is kept together; a longer one is shown in pieces. */
const MAX_LINE_CHARS = 64 * 1024;

/**
 * Cuts the chunks of one output into whole lines of text, so that the outputs of many tasks do not
 * mix. The lines of a chunk are given out together: a write for each would be slow.
 */
export class LinePrefixer {
  readonly #decoder = new TextDecoder();
  readonly #onLines: (lines: readonly string[]) => void;
  #partial = "";

  constructor(onLines: (lines: readonly string[]) => void) {
    this.#onLines = onLines;
  }

  write(chunk: Uint8Array): void {
    const lines = (this.#partial + this.#decoder.decode(chunk, { stream: true })).split("\n");
    this.#partial = lines.pop() ?? "";
    if (this.#partial.length > MAX_LINE_CHARS) {
      lines.push(this.#partial);
      this.#partial = "";
    }
    if (lines.length > 0) this.#onLines(lines);
  }

  /** Gives out what stands without a newline at the end. */
  end(): void {
    this.#partial += this.#decoder.decode();
    if (this.#partial !== "") this.#onLines([this.#partial]);
    this.#partial = "";
  }
}
