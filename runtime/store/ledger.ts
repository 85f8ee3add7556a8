import type { Clock } from "../clock.ts";
import type { Database } from "./database.ts";
import { Listeners } from "./listeners.ts";
import type { Outbox } from "./outbox.ts";

/** What a transaction has done that others are told of once it is durable. */
export class Notes {
  readonly jobs = new Set<string>();
  ready = false;
  abandoned = false;
  deliveries = false;
}

/** The database of jobs with those who listen to it. */
export class Ledger {
  readonly database: Database;
  readonly clock: Clock;
  readonly outbox: Outbox;
  readonly changed = new Listeners<[id: string]>();
  readonly ready = new Listeners();
  readonly abandoned = new Listeners();
  readonly #offset: number;

  constructor(database: Database, clock: Clock, outbox: Outbox) {
    this.database = database;
    this.clock = clock;
    this.outbox = outbox;
    const last = database.get<{ at: number | null }>(
      "SELECT max(ready_at) AS at FROM tasks WHERE ready_at > 0",
    );
    this.#offset = Math.ceil(last?.at ?? 0) + 1 - clock.monotonic();
  }

  /**
   * The queue's time in ms, for delays: monotonic, and past all delays of before the store was opened,
   * which so are over.
   */
  time(): number {
    return this.#offset + this.clock.monotonic();
  }

  /** Runs `work` as `Database.write` does, then tells those who listen. */
  async change<T>(work: (notes: Notes) => T, options: { durable?: boolean } = {}): Promise<T> {
    const { value, notes } = await this.database.write(() => {
      const own = new Notes();
      return { value: work(own), notes: own };
    }, options);
    for (const id of notes.jobs) this.changed.emit(id);
    if (notes.ready) this.ready.emit();
    if (notes.abandoned) this.abandoned.emit();
    if (notes.deliveries) this.outbox.wake();
    return value;
  }
}
