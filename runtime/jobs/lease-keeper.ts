import type { Queue } from "./ports.ts";
import type { After } from "./timer.ts";

export interface LeaseKeeperOptions {
  queue: Queue;
  leaseMs: number;
  after: After;
  /** A lease is not ours any more. */
  onLost: (token: string) => void;
  /** They were not; it is tried again. */
  onError: (error: unknown) => void;
}

/** Renews the leases on what runs here, at a third of their length. */
export class LeaseKeeper implements AsyncDisposable {
  readonly #options: LeaseKeeperOptions;
  readonly #tokens = new Set<string>();
  #timer: Disposable | undefined;
  #renewing: Promise<void> = Promise.resolve();

  constructor(options: LeaseKeeperOptions) {
    this.#options = options;
  }

  add(token: string): void {
    this.#tokens.add(token);
    this.#arm();
  }

  remove(token: string): void {
    this.#tokens.delete(token);
  }

  /** Renews all leases now. */
  renew(): Promise<void> {
    this.#renewing = this.#renewing.then(() => this.#renew());
    return this.#renewing;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#tokens.clear();
    this.#timer?.[Symbol.dispose]();
    await this.#renewing;
  }

  #arm(): void {
    this.#timer ??= this.#options.after(this.#options.leaseMs / 3, () => {
      this.#timer = undefined;
      void this.renew();
    });
  }

  async #renew(): Promise<void> {
    const { queue, leaseMs, onLost, onError } = this.#options;
    if (this.#tokens.size === 0) return;
    try {
      const lost = await queue.renew([...this.#tokens], leaseMs);
      for (const token of lost) {
        if (this.#tokens.delete(token)) onLost(token);
      }
    } catch (error) {
      onError(error);
    }
    if (this.#tokens.size > 0) this.#arm();
  }
}
