import type { LiveAttempt } from "./live-attempt.ts";

/** Attempts that live here, by token and by job. */
export class LiveSet {
  readonly #byToken = new Map<string, LiveAttempt>();
  readonly #byJob = new Map<string, Set<LiveAttempt>>();

  [Symbol.iterator](): Iterator<LiveAttempt> {
    return this.#byToken.values();
  }

  get(token: string): LiveAttempt | undefined {
    return this.#byToken.get(token);
  }

  hasJob(job: string): boolean {
    return this.#byJob.has(job);
  }

  ofJob(job: string): Iterable<LiveAttempt> {
    return this.#byJob.get(job) ?? [];
  }

  add(attempt: LiveAttempt): void {
    const { job, token } = attempt.claim;
    this.#byToken.set(token, attempt);
    this.#byJob.set(job, (this.#byJob.get(job) ?? new Set()).add(attempt));
  }

  remove(attempt: LiveAttempt): void {
    const { job, token } = attempt.claim;
    this.#byToken.delete(token);
    const ofJob = this.#byJob.get(job);
    ofJob?.delete(attempt);
    if (ofJob?.size === 0) this.#byJob.delete(job);
  }
}
