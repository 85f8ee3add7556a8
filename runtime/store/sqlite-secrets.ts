import type { Secret, SecretPut } from "../api/mod.ts";
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

  async put(name: string, { value, keys }: SecretPut): Promise<Secret> {
    const sealed = this.#sealer.seal(value, sealedFor(name));
    const createdAt = this.#clock.now();
    await this.#database.write(() =>
      this.#database.run(
        "INSERT OR REPLACE INTO secrets (name, sealed, keys, created_at) VALUES (?, ?, ?, ?)",
        ...[name, sealed, keys && JSON.stringify(keys), createdAt],
      ),
    );
    return { name, ...(keys && { keys }), createdAt: new Date(createdAt).toISOString() };
  }

  async value(name: string, owner: string | undefined): Promise<string | undefined> {
    const row = this.#database.get<{ sealed: Uint8Array; keys: string | null }>(
      "SELECT sealed, keys FROM secrets WHERE name = ?",
      name,
    );
    if (!row || !isFor(row.keys, owner)) return undefined;
    return this.#sealer.unseal(row.sealed, sealedFor(name));
  }

  async list(): Promise<Secret[]> {
    return this.#database
      .all<SecretRow>("SELECT name, keys, created_at FROM secrets ORDER BY name")
      .map(secretOf);
  }

  async remove(name: string): Promise<boolean> {
    const removed = this.#database.write(() =>
      this.#database.run("DELETE FROM secrets WHERE name = ?", name),
    );
    return (await removed) > 0;
  }
}

interface SecretRow {
  name: string;
  keys: string | null;
  created_at: number;
}

function secretOf({ name, keys, created_at }: SecretRow): Secret {
  const createdAt = new Date(created_at).toISOString();
  return { name, ...(keys !== null && { keys: keysOf(keys) }), createdAt };
}

/** Without keys in the gateway everybody may have everything. */
function isFor(keys: string | null, owner: string | undefined): boolean {
  if (keys === null || owner === "") return true;
  return owner !== undefined && keysOf(keys).includes(owner);
}

function keysOf(json: string): string[] {
  return JSON.parse(json);
}

function sealedFor(name: string): string {
  return `secret "${name}"`;
}
