import { getLogger } from "@logtape/logtape";
import { blobPrefix } from "./attempt-runner.ts";
import type { BlobStore, Queue } from "./ports.ts";

const logger = getLogger(["flurry", "jobs"]);

/** Removes the blobs of attempts that are nobody's any more. */
export class AbandonedAttempts implements AsyncDisposable {
  readonly #queue: Queue;
  readonly #blobs: BlobStore;
  readonly #listener: Disposable;
  #sweeping: Promise<void> = Promise.resolve();
  #ended = false;

  constructor({ queue, blobs }: { queue: Queue; blobs: BlobStore }) {
    this.#queue = queue;
    this.#blobs = blobs;
    this.#listener = queue.onAbandoned(() => {
      this.#sweeping = this.#sweeping.then(() => this.#try());
    });
  }

  /** Removes all that there are. @throws whatever the store throws */
  async sweep(): Promise<void> {
    while (!this.#ended) {
      const attempts = await this.#queue.abandoned();
      if (attempts.length === 0) return;
      for (const attempt of attempts) await this.#blobs.removeAll(blobPrefix(attempt));
      await this.#queue.cleared(attempts.map(({ token }) => token));
    }
  }

  /** What is left then is removed at the next start. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#ended = true;
    this.#listener[Symbol.dispose]();
    await this.#sweeping;
  }

  async #try(): Promise<void> {
    try {
      await this.sweep();
    } catch (error) {
      // They stay named: the next retry or start tries it again.
      logger.warn("Cannot remove the blobs of earlier results: {error}", { error });
    }
  }
}
