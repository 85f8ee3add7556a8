import { FlurryError } from "../../errors/errors.ts";
import type { Database } from "./database.ts";
import { adminSchema } from "./schema-admin.ts";
import { jobsSchema } from "./schema-jobs.ts";
import { ownersSchema } from "./schema-owners.ts";
import { valuesSchema } from "./schema-values.ts";

/**
 * What makes each version of the database out of the one before, beginning with an empty one. Once
 * released, an entry stays as it is, and what changes is a further one.
 */
export const migrations: readonly string[] = [jobsSchema, adminSchema, valuesSchema, ownersSchema];

/**
 * Brings a database to the newest version, each step in one transaction.
 *
 * @throws FlurryError STORE_TOO_NEW when a newer Flurry has written it
 */
export function migrate(database: Database, steps: readonly string[] = migrations): void {
  const version = versionOf(database);
  if (version > steps.length) {
    throw new FlurryError(
      "STORE_TOO_NEW",
      `${database.file} has version ${version}, and this Flurry knows versions up to ${steps.length}`,
      { hint: "run the Flurry that wrote it, or a newer one, or give another --data directory" },
    );
  }
  for (const [at, sql] of steps.entries()) {
    if (at < version) continue;
    database.transaction(() => {
      database.exec(sql);
      database.exec(`PRAGMA user_version = ${at + 1}`);
    });
  }
}

function versionOf(database: Database): number {
  return database.get<{ user_version: number }>("PRAGMA user_version")!.user_version;
}
