import type { Key } from "../api/mod.ts";
import type { Clock } from "../clock.ts";
import type { KeyStore, StoredKey } from "../jobs/ports.ts";
import type { Database } from "./database.ts";

interface Row {
  id: string;
  name: string;
  scopes: string;
  limits: string;
  hash: string;
  created_at: number;
}

export class SqliteKeys implements KeyStore {
  readonly #database: Database;
  readonly #clock: Clock;

  constructor(database: Database, clock: Clock) {
    this.#database = database;
    this.#clock = clock;
  }

  async create(key: Parameters<KeyStore["create"]>[0]): Promise<Key> {
    const { id, name, scopes, limits, hash } = key;
    const createdAt = this.#clock.now();
    await this.#database.write(() =>
      this.#database.run(
        "INSERT INTO keys (id, name, scopes, limits, hash, created_at) VALUES (?, ?, ?, ?, ?, ?)",
        ...[id, name, JSON.stringify(scopes), JSON.stringify(limits), hash, createdAt],
      ),
    );
    return { id, name, scopes, limits, createdAt: new Date(createdAt).toISOString() };
  }

  async find(id: string): Promise<StoredKey | undefined> {
    const row = this.#database.get<Row>("SELECT * FROM keys WHERE id = ?", id);
    return row && { ...keyOf(row), hash: row.hash };
  }

  async list(): Promise<Key[]> {
    return this.#database.all<Row>("SELECT * FROM keys ORDER BY created_at, id").map(keyOf);
  }

  async remove(id: string): Promise<boolean> {
    return (await this.#database.write(() => this.#database.run("DELETE FROM keys WHERE id = ?", id))) > 0;
  }
}

function keyOf({ id, name, scopes, limits, created_at }: Row): Key {
  return {
    ...{ id, name, scopes: JSON.parse(scopes), limits: JSON.parse(limits) },
    createdAt: new Date(created_at).toISOString(),
  };
}
