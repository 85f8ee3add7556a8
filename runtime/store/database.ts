import { chmodSync, closeSync, openSync } from "node:fs";
import { DatabaseSync, type SQLInputValue, type StatementSync } from "node:sqlite";
import { codeOf } from "../../errors/errors.ts";
import { storeError } from "./store-error.ts";

/** What a statement takes; undefined is stored as NULL. */
export type Parameter = SQLInputValue | undefined;

interface Write {
  work: () => unknown;
  durable: boolean;
  resolve: (value: never) => void;
  reject: (error: unknown) => void;
}

/**
 * One SQLite file, for this process alone. Each transaction is on the disk when it returns, but for writes
 * that do without.
 *
 * Every failure is a FlurryError: NO_SPACE when disk or quota are full, else STORE_FAILED; nothing has
 * changed then.
 */
export class Database implements Disposable {
  readonly file: string;
  readonly #sqlite: DatabaseSync;
  readonly #statements = new Map<string, StatementSync>();
  #writes: Write[] = [];
  #durable = true;

  constructor(file: string) {
    this.file = file;
    this.#sqlite = this.#translated(() => {
      makePrivate(file);
      return new DatabaseSync(file, { timeout: 5000 });
    });
    try {
      // Exclusive: the index of the WAL then lies in memory. As a mapped file it would be one more thing to
      // run out of space, by a signal.
      this.exec("PRAGMA locking_mode = EXCLUSIVE");
      this.exec("PRAGMA journal_mode = WAL");
      this.exec("PRAGMA synchronous = FULL");
      this.exec("PRAGMA foreign_keys = ON");
      this.exec("PRAGMA journal_size_limit = 67108864");
    } catch (error) {
      this.#sqlite.close();
      throw error;
    }
  }

  /** Runs statements that give nothing. */
  exec(sql: string): void {
    this.#translated(() => this.#sqlite.exec(sql));
  }

  /** First row of a query. */
  get<Row>(sql: string, ...parameters: Parameter[]): Row | undefined {
    return this.#translated(() => this.#prepared(sql).get(...bound(parameters)) as Row | undefined);
  }

  /** All rows of a query: those of one page, never those of a table. */
  all<Row>(sql: string, ...parameters: Parameter[]): Row[] {
    return this.#translated(() => this.#prepared(sql).all(...bound(parameters)) as Row[]);
  }

  /** Rows of a query, one after the other; nothing may wait in between. */
  *iterate<Row>(sql: string, ...parameters: Parameter[]): Iterable<Row> {
    const rows = this.#translated(() => this.#prepared(sql).iterate(...bound(parameters)));
    try {
      for (;;) {
        const next = this.#translated(() => rows.next());
        if (next.done) return;
        yield next.value as Row;
      }
    } finally {
      rows.return?.();
    }
  }

  /** Changes rows. Returns how many. */
  run(sql: string, ...parameters: Parameter[]): number {
    return this.#translated(() => Number(this.#prepared(sql).run(...bound(parameters)).changes));
  }

  /** Runs `work` now, in a transaction of its own. */
  transaction<T>(work: () => T): T {
    this.exec("BEGIN IMMEDIATE");
    try {
      const value = work();
      this.exec("COMMIT");
      return value;
    } catch (error) {
      // A failure such as a full disk may have rolled back already.
      if (this.#sqlite.isTransaction) this.exec("ROLLBACK");
      throw error;
    }
  }

  /**
   * Runs `work` in a transaction that it shares with other writes of the same turn, since it is waiting
   * for the disk that takes the time. A `work` that throws undoes its own changes only.
   *
   * @param work - may be run again when the shared transaction fails: it must change nothing but the
   * database
   * @param options.durable - false for what is no loss when the machine (not just this process) dies before
   * the next durable write: it does not wait for the disk. @default true
   * @returns when it is durable
   */
  write<T>(work: () => T, { durable = true }: { durable?: boolean } = {}): Promise<T> {
    return new Promise<T>((resolve, reject) => {
      this.#writes.push({ work, durable, resolve, reject });
      if (this.#writes.length === 1) setImmediate(() => this.#flush());
    });
  }

  [Symbol.dispose](): void {
    this.#flush();
    this.#statements.clear();
    this.#translated(() => this.#sqlite.close());
  }

  #flush(): void {
    const writes = this.#writes;
    this.#writes = [];
    if (writes.length === 0) return;
    // In a WAL what is written later is durable only together with what was written before.
    this.#sync(writes.some(({ durable }) => durable));
    try {
      this.#commit(writes);
    } finally {
      this.#sync(true);
    }
  }

  #sync(durable: boolean): void {
    if (durable === this.#durable) return;
    this.#sqlite.exec(`PRAGMA synchronous = ${durable ? "FULL" : "NORMAL"}`);
    this.#durable = durable;
  }

  #commit(writes: readonly Write[]): void {
    if (writes.length > 1 && this.#runTogether(writes)) return;
    for (const { work, resolve, reject } of writes) {
      try {
        resolve(this.transaction(work) as never);
      } catch (error) {
        reject(error);
      }
    }
  }

  /** False when the transaction failed as a whole, with all of its writes. */
  #runTogether(writes: readonly Write[]): boolean {
    const settle: (() => void)[] = [];
    try {
      this.transaction(() => {
        for (const write of writes) settle.push(this.#runNested(write));
      });
    } catch {
      // Each is run alone then, and gets an error of its own.
      return false;
    }
    for (const tell of settle) tell();
    return true;
  }

  #runNested({ work, resolve, reject }: Write): () => void {
    this.exec("SAVEPOINT one");
    try {
      const value = work();
      this.exec("RELEASE one");
      return () => resolve(value as never);
    } catch (error) {
      this.exec("ROLLBACK TO one");
      this.exec("RELEASE one");
      return () => reject(error);
    }
  }

  #prepared(sql: string): StatementSync {
    const known = this.#statements.get(sql);
    if (known) return known;
    const statement = this.#sqlite.prepare(sql);
    this.#statements.set(sql, statement);
    return statement;
  }

  #translated<T>(action: () => T): T {
    try {
      return action();
    } catch (error) {
      throw storeError(error, this.file);
    }
  }
}

function bound(parameters: Parameter[]): SQLInputValue[] {
  return parameters.map((value) => (value === undefined ? null : value));
}

/**
 * Secrets and hashes are in there: the file is its owner's alone. An existing one is not opened for that,
 * since closing it would release the locks that this process holds on it.
 */
export function makePrivate(file: string): void {
  try {
    closeSync(openSync(file, "wx", 0o600));
  } catch (error) {
    if (codeOf(error) !== "EEXIST") throw error;
    chmodSync(file, 0o600);
  }
}
