import type { LogChunk } from "../api/mod.ts";
import type { Clock } from "../clock.ts";
import type { LogStore, NewLogChunk } from "../jobs/ports.ts";
import { Database } from "./database.ts";
import { Listeners } from "./listeners.ts";
import { migrate } from "./migrations.ts";

/** Chunks that are removed at a time: others get their turn in between. */
const REMOVE_CHUNKS = 200;

const schema = `
  CREATE TABLE jobs (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE
  ) STRICT;

  -- Ids are given in order, and what was read of a job has higher ones than all that it had before.
  CREATE TABLE chunks (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    job INTEGER NOT NULL REFERENCES jobs (id),
    task INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    stream TEXT NOT NULL,
    at INTEGER NOT NULL,
    -- UTF-8; as TEXT, Deno would end it at the first NUL
    text BLOB NOT NULL
  ) STRICT;
  CREATE INDEX chunks_job ON chunks (job);
  CREATE INDEX chunks_task ON chunks (job, task);
`;

interface Row {
  id: number;
  task: number;
  attempt: number;
  stream: LogChunk["stream"];
  at: number;
  text: Uint8Array;
}

/**
 * What tasks print, in a database of its own, so that no result waits for it. It is written to the disk at
 * the system's leisure: a crash of the gateway loses nothing, one of the machine the last seconds.
 */
export class SqliteLogs implements LogStore, Disposable {
  readonly #database: Database;
  readonly #clock: Clock;
  readonly #listeners = new Listeners<[job: string]>();

  constructor(file: string, clock: Clock) {
    this.#database = new Database(file);
    this.#clock = clock;
    try {
      this.#database.exec("PRAGMA synchronous = NORMAL");
      migrate(this.#database, [schema]);
    } catch (error) {
      this.#database[Symbol.dispose]();
      throw error;
    }
  }

  async append(job: string, chunks: readonly NewLogChunk[]): Promise<void> {
    if (chunks.length === 0) return;
    const at = this.#clock.now();
    await this.#database.write(() => {
      this.#database.run("INSERT INTO jobs (name) VALUES (?) ON CONFLICT DO NOTHING", job);
      for (const { task, attempt, stream, text } of chunks) {
        this.#database.run(
          `INSERT INTO chunks (job, task, attempt, stream, at, text)
           SELECT id, ?, ?, ?, ?, ? FROM jobs WHERE name = ?`,
          ...[task, attempt, stream, at, Buffer.from(text), job],
        );
      }
    });
    this.#listeners.emit(job);
  }

  async read(
    job: string,
    { task, after, limit }: { task?: number | undefined; after: number; limit: number },
  ): Promise<LogChunk[]> {
    const select = "SELECT id, task, attempt, stream, at, text FROM chunks";
    const ofJob = "job = (SELECT id FROM jobs WHERE name = ?)";
    const rows =
      task === undefined
        ? this.#database.all<Row>(
            `${select} WHERE ${ofJob} AND id > ? ORDER BY id LIMIT ?`,
            job,
            after,
            limit,
          )
        : this.#database.all<Row>(
            `${select} WHERE ${ofJob} AND task = ? AND id > ? ORDER BY id LIMIT ?`,
            ...[job, task, after, limit],
          );
    return rows.map(({ at, text, ...chunk }) => ({
      ...chunk,
      at: new Date(at).toISOString(),
      text: Buffer.from(text).toString("utf8"),
    }));
  }

  async remove(job: string): Promise<void> {
    const step = () =>
      this.#database.run(
        `DELETE FROM chunks WHERE id IN
           (SELECT id FROM chunks WHERE job = (SELECT id FROM jobs WHERE name = ?) LIMIT ?)`,
        ...[job, REMOVE_CHUNKS],
      );
    while ((await this.#database.write(step)) === REMOVE_CHUNKS);
    await this.#database.write(() =>
      this.#database.run(
        "DELETE FROM jobs WHERE name = ? AND NOT EXISTS (SELECT 1 FROM chunks WHERE job = jobs.id)",
        job,
      ),
    );
  }

  onAppend(listener: (job: string) => void): Disposable {
    return this.#listeners.add(listener);
  }

  [Symbol.dispose](): void {
    this.#database[Symbol.dispose]();
  }
}
