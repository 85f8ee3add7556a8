/** The last values of something that is measured over and over. */
export class Samples {
  readonly #ring: Float64Array;
  #count = 0;

  /** @param most - values kept. @default 4096 */
  constructor(most = 4096) {
    this.#ring = new Float64Array(most);
  }

  add(value: number): void {
    this.#ring[this.#count++ % this.#ring.length] = value;
  }

  /** Those that are kept, in no order. */
  get values(): number[] {
    return [...this.#ring.subarray(0, Math.min(this.#count, this.#ring.length))];
  }
}
