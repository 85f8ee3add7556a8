/** Most families whose parents are made ready for a claimed task at a time: a claim may hold 16 MiB of files. */
const MOST = 8;

/**
 * Families whose parents are being made ready: one task of each is held meanwhile, the others wait in the
 * queue. When there are too many, the next ones wait for their turn without any task being held.
 */
export class Preparing {
  readonly #now = new Set<string>();
  /** In the order of asking. */
  readonly #later = new Set<string>();

  /** Begins, if there is room; false means that the family has to wait for its turn. */
  begin(family: string): boolean {
    if (this.#now.size >= MOST) {
      this.#later.add(family);
      return false;
    }
    this.#later.delete(family);
    this.#now.add(family);
    return true;
  }

  end(family: string): void {
    this.#now.delete(family);
  }

  has(family: string): boolean {
    return this.#now.has(family);
  }

  /** Whether a family waits for its turn. */
  waits(family: string): boolean {
    return this.#later.has(family) && !this.#now.has(family);
  }

  /** Families of which no task is to be claimed now. */
  blocked(): string[] {
    return [...this.#now, ...[...this.#later].slice(MOST - this.#now.size)];
  }

  /**
   * Those whose turn it would be have no task any more: all may ask again.
   *
   * @returns whether this lets anybody in
   */
  passTurn(): boolean {
    if (this.#later.size === 0 || this.#now.size >= MOST) return false;
    this.#later.clear();
    return true;
  }
}
