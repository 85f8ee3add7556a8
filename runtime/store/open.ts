import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { type Clock, systemClock } from "../clock.ts";
import type { Store } from "../jobs/ports.ts";
import { Database } from "./database.ts";
import { lockDirectory } from "./lock.ts";
import { migrate } from "./migrations.ts";
import { storeError } from "./store-error.ts";

export interface StoreOptions {
  /** Data directory; made when missing. */
  dir: string;
  clock?: Clock | undefined;
}

/**
 * Opens the embedded store: SQLite and files in one directory, which is this process's alone.
 *
 * @throws FlurryError DATA_IN_USE, STORE_TOO_NEW, NO_SPACE, STORE_FAILED
 */
export async function openStore(options: StoreOptions): Promise<Store> {
  const { dir, clock = systemClock } = options;
  await using stack = new AsyncDisposableStack();
  makeDirectory(dir);
  stack.use(lockDirectory(dir));
  const database = stack.use(new Database(join(dir, "flurry.db")));
  migrate(database);
  void clock;
  // Each adapter is `new SqliteX(database, clock)`; those that have something to end are `stack.use`d.
  const ports = {};
  const owned = stack.move();
  return { ...ports, [Symbol.asyncDispose]: () => owned.disposeAsync() } as unknown as Store;
}

function makeDirectory(dir: string): void {
  try {
    mkdirSync(dir, { recursive: true, mode: 0o700 });
  } catch (error) {
    throw storeError(error, dir);
  }
}
