import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { type Clock, systemClock } from "../clock.ts";
import type { Store } from "../jobs/ports.ts";
import { Database } from "./database.ts";
import { FileBlobs } from "./file-blobs.ts";
import { IdempotencyKeys } from "./idempotency.ts";
import { Ledger } from "./ledger.ts";
import { lockDirectory } from "./lock.ts";
import { migrate } from "./migrations.ts";
import { voidLeases } from "./recovery.ts";
import { Sealer } from "./sealing.ts";
import { SigningKey } from "./signing-key.ts";
import { SqliteDeliveries } from "./sqlite-deliveries.ts";
import { SqliteHosts } from "./sqlite-hosts.ts";
import { JobSteps } from "./sqlite-job-steps.ts";
import { SqliteJobs } from "./sqlite-jobs.ts";
import { SqliteKeys } from "./sqlite-keys.ts";
import { SqliteLogs } from "./sqlite-logs.ts";
import { SqliteQueue } from "./sqlite-queue.ts";
import { SqliteReceipts } from "./sqlite-receipts.ts";
import { SqliteSecrets } from "./sqlite-secrets.ts";
import { SqliteWorkers } from "./sqlite-workers.ts";
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
  const sealer = await Sealer.open(join(dir, "secret.key"));
  const signingKey = await SigningKey.open(join(dir, "receipts.key"));
  const deliveries = new SqliteDeliveries(database, clock, sealer);
  const ledger = new Ledger(database, clock, deliveries);
  const keys = new IdempotencyKeys(database, clock);
  const steps = new JobSteps(ledger, keys);
  const ports: Omit<Store, typeof Symbol.asyncDispose> = {
    jobs: new SqliteJobs(ledger, steps, keys),
    queue: new SqliteQueue(ledger),
    blobs: await FileBlobs.open(join(dir, "blobs")),
    logs: stack.use(new SqliteLogs(join(dir, "logs.db"), clock)),
    workers: new SqliteWorkers(database, clock),
    keys: new SqliteKeys(database, clock),
    secrets: new SqliteSecrets(database, clock, sealer),
    deliveries,
    hosts: new SqliteHosts(database, clock),
    receipts: stack.use(new SqliteReceipts(join(dir, "receipts.db"), signingKey)),
  };
  voidLeases(ledger);
  stack.use(steps);
  steps.resume();
  const owned = stack.move();
  return { ...ports, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}

function makeDirectory(dir: string): void {
  try {
    mkdirSync(dir, { recursive: true, mode: 0o700 });
  } catch (error) {
    throw storeError(error, dir);
  }
}
