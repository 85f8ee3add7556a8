import type { Delivery, WebhookEvent } from "../api/mod.ts";
import type { Clock } from "../clock.ts";
import type { DeliveryStore, DueDelivery } from "../jobs/ports.ts";
import type { Database } from "./database.ts";
import { Listeners } from "./listeners.ts";
import type { NewDelivery, Outbox } from "./outbox.ts";
import type { Sealer } from "./sealing.ts";

interface Row {
  seq: number;
  id: string;
  job: string;
  event: WebhookEvent;
  url: string;
  secret: string | null;
  body: string;
  state: Delivery["state"];
  due: number;
  attempts: number;
}

interface AttemptRow {
  at: number;
  status: number | null;
  error: string | null;
  ms: number;
}

/** Messages to webhooks. They stay with their job, as a log. */
export class SqliteDeliveries implements DeliveryStore, Outbox {
  readonly #database: Database;
  readonly #clock: Clock;
  readonly #sealer: Sealer;
  readonly #listeners = new Listeners();
  /** Those that somebody is delivering. */
  readonly #taken = new Set<string>();

  constructor(database: Database, clock: Clock, sealer: Sealer) {
    this.#database = database;
    this.#clock = clock;
    this.#sealer = sealer;
    // Their times were those of another process. Who was delivering may have come to an end or not.
    database.transaction(() => database.run("UPDATE deliveries SET due = 0 WHERE state = 'pending'"));
  }

  seal(job: string, secret: string): string {
    return Buffer.from(this.#sealer.seal(secret, ownerOf(job))).toString("base64");
  }

  enqueue({ id, job, event, url, secret, body }: NewDelivery): void {
    this.#database.run(
      `INSERT INTO deliveries (id, job, event, url, secret, body, state, due)
       VALUES (?, ?, ?, ?, ?, ?, 'pending', 0)`,
      ...[id, job, event, url, secret, body],
    );
  }

  forget(job: string): void {
    this.#database.run("DELETE FROM deliveries WHERE job = ?", job);
  }

  wake(): void {
    this.#listeners.emit();
  }

  async takeDue(limit: number): Promise<DueDelivery[]> {
    const rows = this.#database.all<Row>(
      `SELECT *, (SELECT count(*) FROM delivery_attempts WHERE delivery = seq) AS attempts
       FROM deliveries WHERE state = 'pending' AND due <= ? ORDER BY due, seq LIMIT ?`,
      ...[this.#clock.monotonic(), limit + this.#taken.size],
    );
    const free = rows.filter(({ id }) => !this.#taken.has(id)).slice(0, limit);
    for (const { id } of free) this.#taken.add(id);
    try {
      return await this.#readable(free);
    } catch (error) {
      for (const { id } of free) this.#taken.delete(id);
      throw error;
    }
  }

  async attempted(
    id: string,
    { status, error, ms, ok, retryInMs }: Parameters<DeliveryStore["attempted"]>[1],
  ): Promise<void> {
    const retry = !ok && retryInMs !== undefined;
    const state = ok ? "delivered" : retry ? "pending" : "failed";
    const due = this.#clock.monotonic() + (retryInMs ?? 0);
    await this.#database.write(() => {
      const row = this.#database.get<{ seq: number }>("SELECT seq FROM deliveries WHERE id = ?", id);
      // Its job has been removed meanwhile.
      if (!row) return;
      this.#database.run("UPDATE deliveries SET state = ?, due = ? WHERE seq = ?", state, due, row.seq);
      this.#database.run(
        "INSERT INTO delivery_attempts (delivery, at, status, error, ms) VALUES (?, ?, ?, ?, ?)",
        ...[row.seq, this.#clock.now(), status, error, Math.round(ms)],
      );
    });
    this.#taken.delete(id);
    if (retry) this.#listeners.emit();
  }

  async list(job: string): Promise<Delivery[]> {
    const rows = this.#database.all<Row>("SELECT * FROM deliveries WHERE job = ? ORDER BY seq", job);
    return rows.map((row) => this.#deliveryOf(row));
  }

  async nextMs(): Promise<number | undefined> {
    const rows = this.#database.all<{ id: string; due: number }>(
      "SELECT id, due FROM deliveries WHERE state = 'pending' ORDER BY due LIMIT ?",
      this.#taken.size + 1,
    );
    const next = rows.find(({ id }) => !this.#taken.has(id));
    return next && Math.max(0, next.due - this.#clock.monotonic());
  }

  onDue(listener: () => void): Disposable {
    return this.#listeners.add(listener);
  }

  /** Ends those whose secret cannot be decrypted: nobody can sign them, and the others shall not wait. */
  async #readable(rows: readonly Row[]): Promise<DueDelivery[]> {
    const due: DueDelivery[] = [];
    for (const row of rows) {
      try {
        due.push(this.#dueOf(row));
      } catch (error) {
        const message = error instanceof Error ? error.message : String(error);
        await this.attempted(row.id, { error: message, ms: 0, ok: false });
      }
    }
    return due;
  }

  #dueOf({ id, job, event, url, secret, attempts, body }: Row): DueDelivery {
    const due = { id, job, event, url, attempts, body };
    if (secret === null) return due;
    return { ...due, secret: this.#sealer.unseal(Buffer.from(secret, "base64"), ownerOf(job)) };
  }

  #deliveryOf({ seq, id, job, event, url, state, due }: Row): Delivery {
    const attempts = this.#database.all<AttemptRow>(
      "SELECT at, status, error, ms FROM delivery_attempts WHERE delivery = ? ORDER BY id",
      seq,
    );
    const waits = state === "pending" && !this.#taken.has(id);
    const nextTryAt = this.#clock.now() + Math.max(0, due - this.#clock.monotonic());
    return {
      ...{ id, job, event, url, state },
      attempts: attempts.map(({ at, status, error, ms }) => ({
        at: new Date(at).toISOString(),
        ...(status === null ? {} : { status }),
        ...(error === null ? {} : { error }),
        ms,
      })),
      ...(waits ? { nextTryAt: new Date(nextTryAt).toISOString() } : {}),
    };
  }
}

function ownerOf(job: string): string {
  return `the webhook secret of ${job}`;
}
