import { isDeepStrictEqual } from "node:util";
import { FlurryError } from "../../errors/errors.ts";
import type { Page, WorkerSpec, WorkerVersion } from "../api/mod.ts";
import type { Clock } from "../clock.ts";
import type { WorkerStore } from "../jobs/ports.ts";
import { cursorOf, readCursor } from "./cursor.ts";
import type { Database } from "./database.ts";

interface Row {
  name: string;
  version: number;
  spec: string;
  created_at: number;
  current: number;
}

/** Versions of workers that have not been removed. */
const versions = `SELECT v.name, v.version, v.spec, v.created_at, w.current
  FROM worker_versions v JOIN workers w ON w.name = v.name WHERE w.current IS NOT NULL`;

/** Deployed workers. All are `cold` here: the state of their parents is known to who makes those. */
export class SqliteWorkers implements WorkerStore {
  readonly #database: Database;
  readonly #clock: Clock;

  constructor(database: Database, clock: Clock) {
    this.#database = database;
    this.#clock = clock;
  }

  async put(name: string, spec: WorkerSpec): Promise<{ worker: WorkerVersion; created: boolean }> {
    return await this.#database.write(() => {
      const before = this.#current(name);
      if (before && isDeepStrictEqual(before.spec, JSON.parse(JSON.stringify(spec))))
        return { worker: before, created: false };
      this.#database.run(
        `INSERT INTO workers (name, current, last) VALUES (?, 1, 1)
         ON CONFLICT (name) DO UPDATE SET last = last + 1, current = last + 1`,
        name,
      );
      this.#database.run(
        `INSERT INTO worker_versions (name, version, spec, created_at)
         SELECT name, last, ?, ? FROM workers WHERE name = ?`,
        ...[JSON.stringify(spec), this.#clock.now(), name],
      );
      return { worker: this.#current(name)!, created: true };
    });
  }

  async get(name: string, version?: number): Promise<WorkerVersion | undefined> {
    return version === undefined ? this.#current(name) : this.#version(name, version);
  }

  async list(query: { cursor?: string | undefined; limit: number }): Promise<Page<WorkerVersion>> {
    const [after] = query.cursor === undefined ? [""] : readCursor(query.cursor, "string");
    const rows = this.#database.all<Row>(
      `${versions} AND v.version = w.current AND v.name > ? ORDER BY v.name LIMIT ?`,
      ...[after, query.limit + 1],
    );
    return pageOf(rows, query.limit, ({ name }) => cursorOf(name));
  }

  async versions(
    name: string,
    query: { cursor?: string | undefined; limit: number },
  ): Promise<Page<WorkerVersion>> {
    const [before] =
      query.cursor === undefined ? [Number.MAX_SAFE_INTEGER] : readCursor(query.cursor, "number");
    const rows = this.#database.all<Row>(
      `${versions} AND v.name = ? AND v.version < ? ORDER BY v.version DESC LIMIT ?`,
      ...[name, before, query.limit + 1],
    );
    return pageOf(rows, query.limit, ({ version }) => cursorOf(version));
  }

  async setCurrent(name: string, version: number): Promise<WorkerVersion> {
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

  #current(name: string): WorkerVersion | undefined {
    const row = this.#database.get<Row>(`${versions} AND v.version = w.current AND v.name = ?`, name);
    return row && versionOf(row);
  }

  #version(name: string, version: number): WorkerVersion | undefined {
    const row = this.#database.get<Row>(`${versions} AND v.name = ? AND v.version = ?`, name, version);
    return row && versionOf(row);
  }
}

function versionOf({ name, version, spec, created_at, current }: Row): WorkerVersion {
  return {
    ...{ name, version, current: version === current, state: "cold", spec: JSON.parse(spec) },
    createdAt: new Date(created_at).toISOString(),
  };
}

/** @param rows - one more than the page has, if there are more */
function pageOf(rows: Row[], limit: number, cursor: (row: Row) => string): Page<WorkerVersion> {
  const items = rows.slice(0, limit);
  const page = { items: items.map(versionOf) };
  return rows.length > limit ? { ...page, next: cursor(items.at(-1)!) } : page;
}
