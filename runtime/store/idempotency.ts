import type { Clock } from "../clock.ts";
import type { Database } from "./database.ts";

const KEPT_MS = 24 * 3600 * 1000;

/**
 * Which job was submitted with which idempotency key. A key answers for 24 h, and only while its job is
 * there: of one that was removed nothing could be answered.
 *
 * Ages are told by a clock that starts at the wall clock and then goes on monotonically, never behind
 * what is stored already, so that jumps of the wall clock forget no key.
 */
export class IdempotencyKeys {
  readonly #database: Database;
  readonly #clock: Clock;
  readonly #offset: number;

  constructor(database: Database, clock: Clock) {
    this.#database = database;
    this.#clock = clock;
    const last = database.get<{ at: number | null }>("SELECT max(at) AS at FROM idempotency");
    this.#offset = Math.max(clock.now(), last?.at ?? 0) - clock.monotonic();
  }

  find(owner: string, key: string): { job: string; bodyHash: string } | undefined {
    return this.#database.get(
      `SELECT jobs.id AS job, body_hash AS bodyHash FROM idempotency JOIN jobs ON jobs.seq = idempotency.job
        WHERE idempotency.owner = ? AND key = ? AND at > ?`,
      owner,
      key,
      this.#now() - KEPT_MS,
    );
  }

  /** Called within a transaction, when `find` gives nothing. */
  add(owner: string, key: string, job: { bodyHash: string; seq: number }): void {
    const now = this.#now();
    // A few at a time: many may have come within the same second.
    this.#database.run(
      "DELETE FROM idempotency WHERE (owner, key) IN (SELECT owner, key FROM idempotency WHERE at <= ? LIMIT 100)",
      now - KEPT_MS,
    );
    this.#database.run(
      "INSERT OR REPLACE INTO idempotency (owner, key, body_hash, job, at) VALUES (?, ?, ?, ?, ?)",
      ...[owner, key, job.bodyHash, job.seq, now],
    );
  }

  /** Frees the key of a job that is removed. Called within a transaction. */
  forget(seq: number): void {
    this.#database.run("DELETE FROM idempotency WHERE job = ?", seq);
  }

  #now(): number {
    return Math.floor(this.#offset + this.#clock.monotonic());
  }
}
