/** Bytes of a body that are kept to send them a second time. */
const KEPT_MAX = 65_536;

/**
 * A request's body that can be sent again as long as little of it has been read: after a connection that was
 * refused, and after a redirect that wants the same request elsewhere.
 */
export class ReplayBody {
  readonly #reader: ReadableStreamDefaultReader<Uint8Array>;
  #kept: Uint8Array[] = [];
  #bytes = 0;
  /** Chunks before the first one that is kept. */
  #gone = 0;
  #isEnded = false;
  #reading: Promise<void> | undefined;
  #turn = 0;

  constructor(source: ReadableStream<Uint8Array>) {
    this.#reader = source.getReader();
  }

  /** Whether `chunks` would begin at the beginning. */
  get isWhole(): boolean {
    return this.#bytes <= KEPT_MAX;
  }

  /** The body from its beginning; for who called this before, it ends. Throws what the source throws. */
  async *chunks(): AsyncGenerator<Uint8Array> {
    const turn = ++this.#turn;
    for (let at = 0; ; at++) {
      while (at - this.#gone >= this.#kept.length && !this.#isEnded) {
        // An earlier caller's read may still be under way.
        this.#reading ??= this.#read();
        await this.#reading;
      }
      if (turn !== this.#turn) return;
      const chunk = this.#kept[at - this.#gone];
      if (chunk === undefined) return;
      if (!this.isWhole) this.#gone += this.#kept.splice(0, at - this.#gone + 1).length;
      yield chunk;
    }
  }

  /** Says that no more is wanted. */
  cancel(reason: unknown): void {
    this.#isEnded = true;
    this.#reader.cancel(reason).catch(() => undefined); // whatever it was, nobody wants it
  }

  async #read(): Promise<void> {
    try {
      const { done, value } = await this.#reader.read();
      if (done) this.#isEnded = true;
      if (!value) return;
      this.#kept.push(value);
      this.#bytes += value.length;
    } finally {
      this.#reading = undefined;
    }
  }
}
