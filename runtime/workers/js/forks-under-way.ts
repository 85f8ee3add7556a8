/** Forks on a host that have begun, and are not ready yet: each takes about one core until it is. */
export class ForksUnderWay {
  readonly #cores: number;
  #count = 0;

  constructor(cores: number) {
    this.#cores = cores;
  }

  /** Whether one more would slow the others down. */
  get isFull(): boolean {
    return this.#count >= this.#cores;
  }

  async during<T>(fork: () => Promise<T>): Promise<T> {
    this.#count += 1;
    try {
      return await fork();
    } finally {
      this.#count -= 1;
    }
  }
}
