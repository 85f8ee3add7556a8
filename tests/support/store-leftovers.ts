import { readdirSync } from "node:fs";
import { join, relative } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { recount } from "./store-recount.ts";

const FILES = [
  "blobs",
  "flurry.db",
  "lock",
  "lock.pid",
  "logs.db",
  "receipts.db",
  "receipts.key",
  "secret.key",
];

/**
 * Compares what lies in a data directory that no gateway has open with what its database knows, and the
 * database with itself. Returns what should not be so when no task waits or runs.
 */
export function leftoversOf(dir: string): string[] {
  const wrong = recount(dir);
  const files = readdirSync(dir).sort();
  if (String(files) !== String(FILES)) wrong.push(`the directory holds ${files.join(", ")}`);
  using database = opened(join(dir, "flurry.db"));
  using logs = opened(join(dir, "logs.db"));
  const jobs = new Set(database.texts("SELECT id FROM jobs WHERE phase = 'live'"));
  wrong.push(
    ...database
      .texts("SELECT id FROM jobs WHERE phase <> 'live'")
      .map((id) => `${id} is not there for people`),
    ...database.texts("SELECT token FROM leases").map((token) => `the lease ${token} is held`),
    ...database.texts("SELECT token FROM abandoned").map((token) => `the attempt ${token} was not cleared`),
    ...database.texts("SELECT id FROM removed").map((id) => `${id} was not purged`),
    ...logs
      .texts("SELECT name FROM jobs")
      .filter((id) => !jobs.has(id))
      .map((id) => `there are logs of ${id}`),
  );
  const blobs = new Set(database.texts("SELECT blob FROM artifacts"));
  for (const file of filesBelow(join(dir, "blobs"))) {
    if (!blobs.delete(file)) wrong.push(`the blob ${file} belongs to no task`);
  }
  for (const blob of blobs) wrong.push(`the blob ${blob} is missing`);
  return wrong;
}

/** Whether nothing is left of removed jobs, in a data directory that no gateway has open. */
export function isPurged(dir: string): boolean {
  using database = opened(join(dir, "flurry.db"));
  return database.texts("SELECT id FROM removed").length === 0;
}

function opened(file: string) {
  const database = new DatabaseSync(file);
  return {
    /** The first column of all rows. */
    texts: (sql: string) =>
      database
        .prepare(sql)
        .all()
        .map((row) => String(Object.values(row)[0])),
    [Symbol.dispose]: () => database.close(),
  };
}

function filesBelow(dir: string): string[] {
  return readdirSync(dir, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => relative(dir, join(entry.parentPath, entry.name)));
}
