import { getLogger } from "@logtape/logtape";
import type { JobStore } from "./ports.ts";
import type { After } from "./timer.ts";

/** Wait before a store that failed is asked again. */
const AGAIN_MS = 1000;
const logger = getLogger(["flurry", "jobs"]);

/** Sees when jobs that have tasks here are canceled. */
export class CancelWatch implements Disposable {
  readonly #jobs: Pick<JobStore, "get" | "onChange">;
  readonly #after: After;
  readonly #runsHere: (job: string) => boolean;
  readonly #onCancel: (job: string, reason: string) => void;
  readonly #listener: Disposable;
  /** Jobs that are being looked at; true when they have changed meanwhile. */
  readonly #looking = new Map<string, boolean>();
  readonly #timers = new Set<Disposable>();

  constructor(options: {
    jobs: Pick<JobStore, "get" | "onChange">;
    after: After;
    runsHere: (job: string) => boolean;
    onCancel: (job: string, reason: string) => void;
  }) {
    this.#jobs = options.jobs;
    this.#after = options.after;
    this.#runsHere = options.runsHere;
    this.#onCancel = options.onCancel;
    this.#listener = options.jobs.onChange((job) => this.look(job));
  }

  /** Looks at a job, now or as soon as the look before is over. */
  look(job: string): void {
    if (!this.#runsHere(job)) return;
    if (this.#looking.has(job)) {
      this.#looking.set(job, true);
      return;
    }
    this.#looking.set(job, false);
    void this.#look(job);
  }

  [Symbol.dispose](): void {
    this.#listener[Symbol.dispose]();
    for (const timer of this.#timers) timer[Symbol.dispose]();
  }

  async #look(job: string): Promise<void> {
    do {
      this.#looking.set(job, false);
      try {
        const stored = await this.#jobs.get(job);
        if (stored?.job.state === "canceling") this.#onCancel(job, stored.job.reason);
      } catch (error) {
        logger.warn("Cannot see whether {job} is canceled: {error}", { job, error });
        this.#lookLater(job);
      }
    } while (this.#looking.get(job) && this.#runsHere(job));
    this.#looking.delete(job);
  }

  #lookLater(job: string): void {
    const timer = this.#after(AGAIN_MS, () => {
      this.#timers.delete(timer);
      this.look(job);
    });
    this.#timers.add(timer);
  }
}
