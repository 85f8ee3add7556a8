import type { Secret } from "../api/mod.ts";
import type { Clock } from "../clock.ts";
import type { SecretStore } from "../jobs/ports.ts";
import type { Database } from "./database.ts";
import type { Sealer } from "./sealing.ts";

export class SqliteSecrets implements SecretStore {
  readonly #database: Database;
  readonly #clock: Clock;
  readonly #sealer: Sealer;

  constructor(database: Database, clock: Clock, sealer: Sealer) {
    this.#database = database;
    this.#clock = clock;
    this.#sealer = sealer;
  }

  async put(name: string, value: string): Promise<Secret> {
    const sealed = this.#sealer.seal(value, ownerOf(name));
    const createdAt = this.#clock.now();
    await this.#database.write(() =>
      this.#database.run(
        "INSERT OR REPLACE INTO secrets (name, sealed, created_at) VALUES (?, ?, ?)",
        ...[name, sealed, createdAt],
      ),
    );
    return secretOf({ name, created_at: createdAt });
  }

  async value(name: string): Promise<string | undefined> {
    const row = this.#database.get<{ sealed: Uint8Array }>("SELECT sealed FROM secrets WHERE name = ?", name);
    return row && this.#sealer.unseal(row.sealed, ownerOf(name));
  }

  async list(): Promise<Secret[]> {
    return this.#database
      .all<{ name: string; created_at: number }>("SELECT name, created_at FROM secrets ORDER BY name")
      .map(secretOf);
  }

  async remove(name: string): Promise<boolean> {
    const removed = this.#database.write(() =>
      this.#database.run("DELETE FROM secrets WHERE name = ?", name),
    );
    return (await removed) > 0;
  }
}

function secretOf({ name, created_at }: { name: string; created_at: number }): Secret {
  return { name, createdAt: new Date(created_at).toISOString() };
}

function ownerOf(name: string): string {
  return `secret "${name}"`;
}
