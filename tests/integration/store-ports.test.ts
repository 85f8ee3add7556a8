import { join } from "node:path";
import type { Clock } from "../../runtime/clock.ts";
import { Database } from "../../runtime/store/database.ts";
import { migrate } from "../../runtime/store/migrations.ts";
import { Sealer } from "../../runtime/store/sealing.ts";
import { SqliteDeliveries } from "../../runtime/store/sqlite-deliveries.ts";
import { SqliteHosts } from "../../runtime/store/sqlite-hosts.ts";
import { SqliteKeys } from "../../runtime/store/sqlite-keys.ts";
import { SqliteLogs } from "../../runtime/store/sqlite-logs.ts";
import { SqliteSecrets } from "../../runtime/store/sqlite-secrets.ts";
import { SqliteWorkers } from "../../runtime/store/sqlite-workers.ts";
import { keyStoreConformance, secretStoreConformance } from "../support/store-conformance-access.ts";
import {
  type DeliveriesUnderTest,
  deliveryStoreConformance,
  EVENT,
  type TestDelivery,
  URL,
} from "../support/store-conformance-deliveries.ts";
import { hostRegistryConformance } from "../support/store-conformance-hosts.ts";
import { logStoreConformance } from "../support/store-conformance-logs.ts";
import { workerStoreConformance } from "../support/store-conformance-workers.ts";
import { inDirectory, PortInDirectory } from "../support/store-port.ts";

logStoreConformance(
  inDirectory((dir, clock, stack) => stack.use(new SqliteLogs(join(dir, "logs.db"), clock))),
);
workerStoreConformance(
  inDirectory((dir, clock, stack) => new SqliteWorkers(openDatabase(dir, stack), clock)),
);
keyStoreConformance(inDirectory((dir, clock, stack) => new SqliteKeys(openDatabase(dir, stack), clock)));
secretStoreConformance(
  inDirectory(async (dir, clock, stack) => {
    const sealer = await Sealer.open(join(dir, "secret.key"));
    return new SqliteSecrets(openDatabase(dir, stack), clock, sealer);
  }),
);
hostRegistryConformance(inDirectory((dir, clock, stack) => new SqliteHosts(openDatabase(dir, stack), clock)));
deliveryStoreConformance(async () => {
  const deliveries = new Deliveries(openDeliveries);
  await deliveries.open();
  return deliveries;
});

class Deliveries extends PortInDirectory<SqliteDeliveries> implements DeliveriesUnderTest {
  async enqueue({ id, job, secret, url = URL }: TestDelivery): Promise<void> {
    const sealed = secret && this.port.seal(job, secret);
    this.port.enqueue({ id, job, event: EVENT, url, secret: sealed, body: `body of ${id}` });
    this.port.wake();
  }
}

async function openDeliveries(
  dir: string,
  clock: Clock,
  stack: AsyncDisposableStack,
): Promise<SqliteDeliveries> {
  const sealer = await Sealer.open(join(dir, "secret.key"));
  return new SqliteDeliveries(openDatabase(dir, stack), clock, sealer);
}

function openDatabase(dir: string, stack: AsyncDisposableStack): Database {
  const database = stack.use(new Database(join(dir, "flurry.db")));
  migrate(database);
  return database;
}
