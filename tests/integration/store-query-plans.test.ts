import { describe, expect, test } from "bun:test";
import { join } from "node:path";
import { DatabaseSync, type StatementSync } from "node:sqlite";
import type { Store } from "../../runtime/jobs/ports.ts";
import { openStore } from "../../runtime/store/open.ts";
import { ManualClock } from "../support/jobs-clock.ts";
import {
  FAILED,
  LANE,
  mustClaim,
  NOTHING_BLOCKED,
  newJob,
  runAll,
  submit,
  until,
} from "../support/store-jobs.ts";
import { temporaryDirectory } from "../support/vm.ts";

/**
 * Tables of which a statement may read every row: they have one for each key, lease, or job that is
 * being removed; none has one for each job or task.
 */
const SMALL = ["loads", "leases", "removed", "abandoned", "json_each"];
/** Tables that grow with jobs and tasks. */
const LARGE = [
  "jobs",
  "heads",
  "specs",
  "tasks",
  "inputs",
  "outputs",
  "artifacts",
  "events",
  "job_tags",
  "idempotency",
  "deliveries",
  "delivery_attempts",
  "receivers",
];

/** Runs `work`, and returns the statements that were prepared meanwhile. Bun alone lets `prepare` be replaced: on Deno it is no method of the prototype. */
async function preparedBy(work: () => Promise<void>): Promise<Set<string>> {
  const prepared = new Set<string>();
  const { prepare } = DatabaseSync.prototype;
  DatabaseSync.prototype.prepare = function (this: DatabaseSync, sql: string): StatementSync {
    prepared.add(sql);
    return prepare.call(this, sql);
  };
  try {
    await work();
  } finally {
    DatabaseSync.prototype.prepare = prepare;
  }
  return prepared;
}

describe("the embedded store", () => {
  test("reads no large table from end to end and sorts nothing, whatever is asked of jobs and the queue", async () => {
    using directory = temporaryDirectory();
    const statements = await preparedBy(() => everything(directory.path));
    expect(statements.size).toBeGreaterThan(50);
    using database = openDatabase(join(directory.path, "flurry.db"));
    const bad: string[] = [];
    for (const sql of statements) {
      if (!LARGE.some((table) => new RegExp(`\\b${table}\\b`).test(sql)) || /^\s*(CREATE|PRAGMA)/.test(sql))
        continue;
      const plan = database.all(`EXPLAIN QUERY PLAN ${sql}`);
      for (const { detail } of plan) {
        const scanned = /^SCAN (\w+)/.exec(detail)?.[1];
        const partial =
          /USING (?:COVERING )?INDEX (?:jobs_step|jobs_draft|tasks_delayed|deliveries_pending|receivers_due)\b/.test(
            detail,
          );
        const scans = scanned !== undefined && scanned !== "CONSTANT" && !SMALL.includes(scanned) && !partial;
        if (scans || detail.includes("ORDER BY")) bad.push(`${detail}: ${sql}`);
      }
    }
    expect(bad).toEqual([]);
  });
});

/** Asks everything that has to do with jobs, in all its ways. */
async function everything(dir: string): Promise<void> {
  const clock = new ManualClock();
  for (let time = 0; time < 2; time += 1) {
    await using store = await openStore({ dir, clock });
    const { jobs, queue } = store;
    const owner = `owner ${time}`;
    const lane = { owner, priority: 5 };
    const { job } = await submit(store, ["1", "2", "3"], {
      owner,
      tags: ["tag"],
      idempotencyKey: `key ${time}`,
    });
    await jobs.repeats(owner, "key");
    await submit(store, 3000, { owner: "b" });
    const draft = await jobs.draft(newJob());
    await draft.add(["1"]);
    await queue.lanes(NOTHING_BLOCKED);
    await queue.lanes({ families: new Set(["family"]), owners: new Set(["b"]) });
    const first = await mustClaim(store, { lane });
    await queue.started(first.token, "vm");
    await queue.finish(first.token, { state: "retrying", reason: "failed", delayMs: 10 });
    const second = await mustClaim(store, { lane, leaseMs: 10 });
    await queue.nextMs();
    clock.advance(10);
    await queue.expire();
    await queue.finish((await mustClaim(store, { lane })).token, FAILED);
    await queue.renew([second.token], 10);
    for (const ofOwner of [undefined, owner]) {
      await jobs.load(ofOwner);
      for (const state of [undefined, "running"] as const) {
        for (const tag of [undefined, "tag"]) await jobs.list({ owner: ofOwner, state, tag, limit: 10 });
      }
    }
    await jobs.get(job.id);
    await jobs.task(job.id, 0);
    for (const state of [undefined, "queued", "failed"] as const)
      await jobs.tasks(job.id, { state, limit: 1 });
    for (const order of ["index", "completion"] as const)
      await jobs.results(job.id, { order, after: 1, limit: 10 });
    for (const task of [undefined, 1]) await jobs.artifacts(job.id, { task, limit: 10 });
    await jobs.artifact(job.id, 0, "path");
    await jobs.events(job.id, 1, 10);
    await jobs.cancel(job.id, "enough");
    await jobs.retry(job.id, 0);
    await jobs.cancel(job.id, "enough");
    await jobs.retry(job.id);
    await jobs.cancel(job.id, "enough");
    await until(store, job.id, (stored) => stored.job.state === "canceled");
    await jobs.remove(job.id);
    await jobs.removed();
    await jobs.purged(job.id);
    await mustClaim(store, { lane: { ...LANE, owner: "b" } });
    await queue.abandoned();
    await queue.cleared(["token"]);
    await runAll(store);
    await everythingOfDeliveries(store);
  }
}

/** Asks everything that has to do with messages to webhooks. */
async function everythingOfDeliveries(store: Store): Promise<void> {
  const { jobs, deliveries } = store;
  const webhook = { url: "https://example.com/", events: ["job.canceled" as const] };
  const { job } = await submit(store, 1, { webhook });
  await jobs.cancel(job.id, "enough");
  for (const { id } of await deliveries.takeDue(2, 1)) await deliveries.attempted(id, { ms: 1, ok: true });
  await deliveries.nextMs(1);
  expect(await deliveries.list(job.id)).toMatchObject([{ state: "delivered" }]);
  await jobs.remove(job.id);
  await jobs.purged(job.id);
}

function openDatabase(file: string): Disposable & { all: (sql: string) => { detail: string }[] } {
  const database = new DatabaseSync(file);
  return {
    all: (sql) => database.prepare(sql).all() as { detail: string }[],
    [Symbol.dispose]: () => database.close(),
  };
}
