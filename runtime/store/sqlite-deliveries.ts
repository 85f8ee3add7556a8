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
  receiver: string;
  secret: string | null;
  body: string;
  state: Delivery["state"];
  due: number;
  attempts: number;
}

/** A message that is pending, and where it is in the order. */
type Pending = Pick<Row, "id" | "receiver" | "due" | "seq">;

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
  /** Ids of those that somebody is delivering, each with its receiver. */
  readonly #taken = new Map<string, string>();

  constructor(database: Database, clock: Clock, sealer: Sealer) {
    this.#database = database;
    this.#clock = clock;
    this.#sealer = sealer;
    // Their times were those of another process. Who was delivering may have come to an end or not.
    database.transaction(() => {
      database.run("UPDATE deliveries SET due = 0 WHERE state = 'pending' AND due > 0");
      database.run("DELETE FROM receivers");
      database.run(
        `INSERT INTO receivers (receiver, due, seq)
         SELECT receiver, 0, min(seq) FROM deliveries WHERE state = 'pending' GROUP BY receiver`,
      );
    });
  }

  seal(job: string, secret: string): string {
    return Buffer.from(this.#sealer.seal(secret, ownerOf(job))).toString("base64");
  }

  enqueue({ id, job, event, url, secret, body }: NewDelivery): void {
    const receiver = receiverOf(url);
    this.#database.run(
      `INSERT INTO deliveries (id, job, event, url, receiver, secret, body, state, due)
       VALUES (?, ?, ?, ?, ?, ?, ?, 'pending', 0)`,
      ...[id, job, event, url, receiver, secret, body],
    );
    this.#setFirst(receiver);
  }

  forget(job: string): void {
    const to = this.#database.all<Pick<Row, "receiver">>(
      "SELECT DISTINCT receiver FROM deliveries WHERE job = ?",
      job,
    );
    this.#database.run("DELETE FROM deliveries WHERE job = ?", job);
    for (const { receiver } of to) this.#setFirst(receiver);
  }

  wake(): void {
    this.#listeners.emit();
  }

  async takeDue(limit: number, perReceiver = Number.POSITIVE_INFINITY): Promise<DueDelivery[]> {
    const now = this.#clock.monotonic();
    const rows: Row[] = [];
    try {
      while (rows.length < limit) {
        const next = this.#next(perReceiver);
        if (!next || next.due > now) break;
        rows.push(this.#row(next));
        this.#taken.set(next.id, next.receiver);
      }
      return await this.#readable(rows);
    } catch (error) {
      for (const { id } of rows) this.#taken.delete(id);
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
      const row = this.#database.get<Pick<Row, "seq" | "receiver">>(
        "SELECT seq, receiver FROM deliveries WHERE id = ?",
        id,
      );
      // Its job has been removed meanwhile.
      if (!row) return;
      this.#database.run("UPDATE deliveries SET state = ?, due = ? WHERE seq = ?", state, due, row.seq);
      this.#setFirst(row.receiver);
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

  async nextMs(perReceiver = Number.POSITIVE_INFINITY): Promise<number | undefined> {
    const next = this.#next(perReceiver);
    return next && Math.max(0, next.due - this.#clock.monotonic());
  }

  onDue(listener: () => void): Disposable {
    return this.#listeners.add(listener);
  }

  /** The first that nobody has taken, and whose receiver is below its bound. */
  #next(perReceiver: number): Pending | undefined {
    const busy = new Map<string, number>();
    for (const receiver of this.#taken.values()) busy.set(receiver, (busy.get(receiver) ?? 0) + 1);
    // What the others begin with is behind the first of a receiver that is not busy.
    const firsts = this.#database.all<Pick<Pending, "receiver" | "due" | "seq">>(
      "SELECT receiver, due, seq FROM receivers ORDER BY due, seq LIMIT ?",
      busy.size + 1,
    );
    return firsts
      .filter(({ receiver }) => (busy.get(receiver) ?? 0) < perReceiver)
      .map(({ receiver }) => this.#nextTo(receiver, busy.get(receiver) ?? 0))
      .filter((next) => next !== undefined)
      .sort((one, other) => one.due - other.due || one.seq - other.seq)[0];
  }

  /** The first message to a receiver that nobody has taken, when so many of its messages are taken. */
  #nextTo(receiver: string, taken: number): Pending | undefined {
    return this.#database
      .all<Pending>(
        `SELECT id, receiver, due, seq FROM deliveries WHERE state = 'pending' AND receiver = ?
         ORDER BY due, seq LIMIT ?`,
        ...[receiver, taken + 1],
      )
      .find(({ id }) => !this.#taken.has(id));
  }

  #row({ seq }: Pending): Row {
    return this.#database.get<Row>(
      `SELECT *, (SELECT count(*) FROM delivery_attempts WHERE delivery = seq) AS attempts
       FROM deliveries WHERE seq = ?`,
      seq,
    )!;
  }

  /** Brings the table of receivers up to date. Called within the transaction of a change. */
  #setFirst(receiver: string): void {
    this.#database.run("DELETE FROM receivers WHERE receiver = ?", receiver);
    this.#database.run(
      `INSERT INTO receivers (receiver, due, seq) SELECT receiver, due, seq FROM deliveries
       WHERE state = 'pending' AND receiver = ? ORDER BY due, seq LIMIT 1`,
      receiver,
    );
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

/** Scheme, host and port in one way of writing for all URLs that lead to the same. */
function receiverOf(url: string): string {
  const { protocol, hostname, port } = new URL(url);
  return `${protocol}//${hostname.replace(/\.$/, "")}:${port}`;
}

function ownerOf(job: string): string {
  return `the webhook secret of ${job}`;
}
