/** A set of pages of an image, one bit each. */
export class PageSet {
  readonly #bits: Uint8Array;
  #size = 0;

  constructor(pages: number) {
    this.#bits = new Uint8Array(Math.ceil(pages / 8));
  }

  get size(): number {
    return this.#size;
  }

  has(page: number): boolean {
    return (this.#bits[page >> 3]! & (1 << (page & 7))) !== 0;
  }

  add(page: number): void {
    if (this.has(page)) return;
    this.#bits[page >> 3]! |= 1 << (page & 7);
    this.#size += 1;
  }

  delete(page: number): void {
    if (!this.has(page)) return;
    this.#bits[page >> 3]! &= ~(1 << (page & 7));
    this.#size -= 1;
  }
}
