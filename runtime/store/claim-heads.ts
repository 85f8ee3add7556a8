import type { Retry, WorkerSpec } from "../api/mod.ts";
import type { Claim } from "../jobs/ports.ts";
import type { Database } from "./database.ts";
import { optional } from "./sqlite-job-rows.ts";

/** Most characters of JSON whose parsed form is kept. */
const KEPT_CHARACTERS = 16 * 1024 * 1024;

type ClaimHead = Pick<Claim, "worker" | "spec" | "env" | "retry" | "timeoutMs" | "traceparent">;

interface Row {
  worker_name: string | null;
  worker_version: number | null;
  retry: string;
  timeout_ms: number | null;
  traceparent: string | null;
  env: string;
  spec: string;
}

/** What all claims of a job have in common: its tasks come one after the other, and a spec may be large. */
export class ClaimHeads {
  readonly #database: Database;
  /** The last used one is the last. */
  readonly #kept = new Map<number, { head: ClaimHead; characters: number }>();
  #characters = 0;

  constructor(database: Database) {
    this.#database = database;
  }

  get(seq: number): ClaimHead {
    const entry = this.#kept.get(seq) ?? this.#read(seq);
    if (!this.#kept.delete(seq)) this.#characters += entry.characters;
    this.#kept.set(seq, entry);
    for (const [oldest, { characters }] of this.#kept) {
      if (this.#characters <= KEPT_CHARACTERS) break;
      this.#kept.delete(oldest);
      this.#characters -= characters;
    }
    return entry.head;
  }

  #read(seq: number): { head: ClaimHead; characters: number } {
    const row = this.#database.get<Row>(
      `SELECT worker_name, worker_version, retry, timeout_ms, traceparent, env, specs.spec
        FROM heads JOIN specs ON specs.id = heads.spec WHERE heads.job = ?`,
      seq,
    )!;
    const head: ClaimHead = {
      worker:
        row.worker_name === null ? undefined : { name: row.worker_name, version: row.worker_version ?? 0 },
      spec: JSON.parse(row.spec) as WorkerSpec,
      env: JSON.parse(row.env) as Record<string, string>,
      retry: JSON.parse(row.retry) as Retry,
      timeoutMs: optional(row.timeout_ms),
      traceparent: optional(row.traceparent),
    };
    // Never nothing, so that also the number of entries has a bound.
    return { head, characters: row.spec.length + row.env.length + 1000 };
  }
}
