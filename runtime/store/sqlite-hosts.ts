import type { HostEntry, SetAside } from "../api/mod.ts";
import type { Clock } from "../clock.ts";
import type { HostRegistry } from "../jobs/ports.ts";
import type { Database } from "./database.ts";

interface Row {
  id: string;
  name: string;
  accel: string | null;
  cores: number;
  memory_bytes: number;
  slots: number;
  running: number;
  up: number;
  started_at: number;
  seen_at: number;
}

/** The hosts of one gateway. What was up or set aside ends with the process that said so. */
export class SqliteHosts implements HostRegistry {
  readonly #database: Database;
  readonly #clock: Clock;

  constructor(database: Database, clock: Clock) {
    this.#database = database;
    this.#clock = clock;
    database.transaction(() => {
      database.run("UPDATE hosts SET up = 0, running = 0");
      database.run("DELETE FROM set_aside");
    });
  }

  async register(host: Parameters<HostRegistry["register"]>[0]): Promise<void> {
    const { id, name, accel, cores, memoryBytes, slots } = host;
    const now = this.#clock.now();
    await this.#database.write(() => {
      this.#database.run("DELETE FROM hosts WHERE id = ?", id);
      this.#database.run(
        `INSERT INTO hosts (id, name, accel, cores, memory_bytes, slots, running, up, started_at, seen_at)
         VALUES (?, ?, ?, ?, ?, ?, 0, 1, ?, ?)`,
        ...[id, name, accel, cores, memoryBytes, slots, now, now],
      );
    });
  }

  async heartbeat(id: string, running: number): Promise<void> {
    const sql = "UPDATE hosts SET running = ?, seen_at = ? WHERE id = ? AND up = 1";
    await this.#database.write(() => this.#database.run(sql, running, this.#clock.now(), id), {
      durable: false,
    });
  }

  async leave(id: string): Promise<void> {
    await this.#database.write(() => {
      this.#database.run("UPDATE hosts SET up = 0, running = 0 WHERE id = ?", id);
      this.#database.run("DELETE FROM set_aside WHERE host = ?", id);
    });
  }

  async list(): Promise<HostEntry[]> {
    return this.#database.all<Row>("SELECT * FROM hosts ORDER BY id").map((row) => this.#entryOf(row));
  }

  async setAside(host: string, entry: SetAside): Promise<void> {
    // None of a host that has left.
    const sql = `INSERT OR REPLACE INTO set_aside (host, kind, id, entry)
      SELECT id, ?, ?, ? FROM hosts WHERE id = ? AND up = 1`;
    const { kind, id } = entry;
    await this.#database.write(() => this.#database.run(sql, kind, id, JSON.stringify(entry), host));
  }

  async restore(host: string, kind: SetAside["kind"], id: string): Promise<void> {
    const sql = "DELETE FROM set_aside WHERE host = ? AND kind = ? AND id = ?";
    await this.#database.write(() => this.#database.run(sql, host, kind, id));
  }

  #entryOf({
    id,
    name,
    accel,
    cores,
    memory_bytes,
    slots,
    running,
    up,
    started_at,
    seen_at,
  }: Row): HostEntry {
    const setAside = this.#database
      .all<{ entry: string }>("SELECT entry FROM set_aside WHERE host = ? ORDER BY kind, id", id)
      .map(({ entry }): SetAside => JSON.parse(entry));
    const unused = setAside.some(({ kind }) => kind === "host");
    return {
      ...{ id, name, cores, memoryBytes: memory_bytes, slots, running, setAside },
      ...(accel === null ? {} : { accel }),
      state: !up ? "down" : unused ? "set-aside" : "up",
      startedAt: new Date(started_at).toISOString(),
      seenAt: new Date(seen_at).toISOString(),
    };
  }
}
