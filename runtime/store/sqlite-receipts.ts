import type { NewReceipt, ReceiptStore, StoredReceipt } from "../jobs/ports.ts";
import { Database } from "./database.ts";
import { migrate } from "./migrations.ts";
import type { SigningKey } from "./signing-key.ts";

/** Receipts that are kept, and as many more before the oldest of them go. */
const KEEP = 100_000;
const SURPLUS = 1000;

const schema = `
  CREATE TABLE receipts (
    id INTEGER PRIMARY KEY,
    vm TEXT NOT NULL UNIQUE,
    payload TEXT NOT NULL,
    signature TEXT NOT NULL
  ) STRICT;
`;

/**
 * Receipts of children, signed, in a database of its own: no result waits for it, and it may be removed. It is
 * written to the disk at the system's leisure, as logs are.
 */
export class SqliteReceipts implements ReceiptStore, Disposable {
  readonly #database: Database;
  readonly #key: SigningKey;
  readonly #keep: number;

  /** @param options.keep - newest receipts that are kept. @default 100000 */
  constructor(file: string, key: SigningKey, { keep = KEEP }: { keep?: number } = {}) {
    this.#database = new Database(file);
    this.#key = key;
    this.#keep = keep;
    try {
      this.#database.exec("PRAGMA synchronous = NORMAL");
      migrate(this.#database, [schema]);
    } catch (error) {
      this.#database[Symbol.dispose]();
      throw error;
    }
  }

  async add(receipts: readonly NewReceipt[]): Promise<void> {
    const signed = receipts.map(({ vm, payload }) => ({ vm, payload, signature: this.#key.sign(payload) }));
    await this.#database.write(() => {
      for (const { vm, payload, signature } of signed) {
        this.#database.run(
          "INSERT OR REPLACE INTO receipts (vm, payload, signature) VALUES (?, ?, ?)",
          ...[vm, payload, signature],
        );
      }
      this.#prune();
    });
  }

  async find(vm: string): Promise<StoredReceipt | undefined> {
    const row = this.#database.get<Omit<StoredReceipt, "publicKey">>(
      "SELECT vm, payload, signature FROM receipts WHERE vm = ?",
      vm,
    );
    return row && { ...row, publicKey: this.#key.publicKey };
  }

  /** What was added at a time is far less than the surplus, so that no write has much to remove. */
  #prune(): void {
    const { first, last } = this.#database.get<{ first: number | null; last: number | null }>(
      "SELECT (SELECT MIN(id) FROM receipts) AS first, (SELECT MAX(id) FROM receipts) AS last",
    )!;
    if (first === null || last === null || last - first < this.#keep + SURPLUS) return;
    this.#database.run("DELETE FROM receipts WHERE id <= ?", last - this.#keep);
  }

  [Symbol.dispose](): void {
    this.#database[Symbol.dispose]();
  }
}
