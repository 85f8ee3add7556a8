import { isDeepStrictEqual } from "node:util";
import { FlurryError } from "../../errors/errors.ts";
import type { Page, WorkerSpec } from "../api/mod.ts";
import type { Clock } from "../clock.ts";
import type { StoredWorker, WorkerStore } from "../jobs/ports.ts";
import { cursorOf, readCursor } from "./cursor.ts";
import type { Database } from "./database.ts";

interface Row {
  name: string;
  version: number;
  spec: string;
  created_at: number;
  owner: string | null;
  current: number;
}

/** A version without its files. */
interface Listed {
  name: string;
  version: number;
  bytes: number;
}

/** A page ends early where it would be larger: workers may bring large files. */
const PAGE_BYTES = 32 * 1024 * 1024;

const versions = `SELECT v.name, v.version, v.spec, v.created_at, v.owner, w.current
  FROM worker_versions v JOIN workers w ON w.name = v.name`;

/** Deployed workers. All are `cold` here: the state of their parents is known to who makes those. */
export class SqliteWorkers implements WorkerStore {
  readonly #database: Database;
  readonly #clock: Clock;

  constructor(database: Database, clock: Clock) {
    this.#database = database;
    this.#clock = clock;
  }

  async put(
    name: string,
    spec: WorkerSpec,
    owner: string,
  ): Promise<{ worker: StoredWorker; created: boolean }> {
    return await this.#database.write(() => {
      const before = this.#current(name);
      // To another key it is not the same: secrets go by who has deployed it.
      if (before?.owner === owner && isDeepStrictEqual(before.spec, JSON.parse(JSON.stringify(spec)))) {
        return { worker: before, created: false };
      }
      this.#database.run(
        `INSERT INTO workers (name, current, last) VALUES (?, 1, 1)
         ON CONFLICT (name) DO UPDATE SET last = last + 1, current = last + 1`,
        name,
      );
      this.#database.run(
        `INSERT INTO worker_versions (name, version, spec, created_at, owner)
         SELECT name, last, ?, ?, ? FROM workers WHERE name = ?`,
        ...[JSON.stringify(spec), this.#clock.now(), owner, name],
      );
      return { worker: this.#current(name)!, created: true };
    });
  }

  async get(name: string, version?: number): Promise<StoredWorker | undefined> {
    return version === undefined ? this.#current(name) : this.#version(name, version);
  }

  async list(query: { cursor?: string | undefined; limit: number }): Promise<Page<StoredWorker>> {
    const [after] = query.cursor === undefined ? [""] : readCursor(query.cursor, "string");
    const listed = this.#database.all<Listed>(
      `SELECT w.name, w.current AS version, octet_length(v.spec) AS bytes
       FROM workers w JOIN worker_versions v ON v.name = w.name AND v.version = w.current
       WHERE w.name > ? ORDER BY w.name LIMIT ?`,
      ...[after, query.limit + 1],
    );
    return this.#page(listed, query.limit, ({ name }) => cursorOf(name));
  }

  async versions(
    name: string,
    query: { cursor?: string | undefined; limit: number },
  ): Promise<Page<StoredWorker>> {
    const [before] =
      query.cursor === undefined ? [Number.MAX_SAFE_INTEGER] : readCursor(query.cursor, "number");
    const listed = this.#database.all<Listed>(
      `SELECT name, version, octet_length(spec) AS bytes
       FROM worker_versions WHERE name = ? AND version < ? ORDER BY version DESC LIMIT ?`,
      ...[name, before, query.limit + 1],
    );
    return this.#page(listed, query.limit, ({ version }) => cursorOf(version));
  }

  async setCurrent(name: string, version: number): Promise<StoredWorker> {
    return await this.#database.write(() => {
      if (!this.#version(name, version))
        throw new FlurryError("WORKER_NOT_FOUND", `No version ${version} of worker "${name}"`);
      this.#database.run("UPDATE workers SET current = ? WHERE name = ?", version, name);
      return this.#current(name)!;
    });
  }

  async remove(name: string): Promise<boolean> {
    return await this.#database.write(() => {
      this.#database.run("DELETE FROM worker_versions WHERE name = ?", name);
      const sql = "UPDATE workers SET current = NULL WHERE name = ? AND current IS NOT NULL";
      return this.#database.run(sql, name) > 0;
    });
  }

  #current(name: string): StoredWorker | undefined {
    const row = this.#database.get<Row>(`${versions} WHERE v.version = w.current AND v.name = ?`, name);
    return row && versionOf(row);
  }

  #version(name: string, version: number): StoredWorker | undefined {
    const row = this.#database.get<Row>(`${versions} WHERE v.name = ? AND v.version = ?`, name, version);
    return row && versionOf(row);
  }

  /** @param listed - one more than the page has, if there are more */
  #page(
    listed: readonly Listed[],
    limit: number,
    cursor: (last: StoredWorker) => string,
  ): Page<StoredWorker> {
    const items: StoredWorker[] = [];
    let total = 0;
    for (const { name, version, bytes } of listed.slice(0, limit)) {
      total += bytes;
      if (items.length > 0 && total > PAGE_BYTES) break;
      items.push(this.#version(name, version)!);
    }
    return items.length < listed.length ? { items, next: cursor(items.at(-1)!) } : { items };
  }
}

function versionOf({ name, version, spec, created_at, owner, current }: Row): StoredWorker {
  return {
    ...{ name, version, current: version === current, state: "cold", spec: JSON.parse(spec) },
    createdAt: new Date(created_at).toISOString(),
    owner: owner ?? undefined,
  };
}
