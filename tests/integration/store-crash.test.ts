import { describe, expect, test } from "bun:test";
import { statSync } from "node:fs";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { fileURLToPath } from "node:url";
import { openStore } from "../../runtime/store/open.ts";
import { rejection } from "../support/agent-peer.ts";
import { newJob, runAll, submit, until } from "../support/store-jobs.ts";
import { recount } from "../support/store-recount.ts";
import { Script, temporaryDirectory } from "../support/vm.ts";

const busy = fileURLToPath(new URL("../support/store-busy.ts", import.meta.url));
/** Lines after which the store's process is killed: other moments each time, the same in each run. */
const KILLED_AFTER = [1, 2, 5, 17, 60, 150, 300];

describe("the embedded store", () => {
  test("is refused to a second process, which learns the holder; kill -9 of the holder frees it", async () => {
    using directory = temporaryDirectory();
    await using holder = new Script(busy, [directory.path]);
    expect(await holder.line()).toBe("open");
    const error = await rejection(openStore({ dir: directory.path }));
    expect(error.code).toBe("DATA_IN_USE");
    expect(error.message).toContain(`process ${holder.pid}`);
    await using second = new Script(busy, [directory.path]);
    expect((await second.exited).stderr).toContain("DATA_IN_USE");
    await holder.kill();
    await using _store = await openStore({ dir: directory.path });
  });

  test("is refused to a second opener of the same process, and stays the first one's", async () => {
    using directory = temporaryDirectory();
    {
      await using _store = await openStore({ dir: directory.path });
      for (let time = 0; time < 2; time += 1) {
        const error = await rejection(openStore({ dir: directory.path }));
        expect([error.code, error.message.includes(`process ${process.pid}`)]).toEqual(["DATA_IN_USE", true]);
        // The refused attempt has not released the lock of this process.
        await using other = new Script(busy, [directory.path]);
        expect((await other.exited).stderr).toContain("DATA_IN_USE");
      }
    }
    await using _again = await openStore({ dir: directory.path });
  });

  test("lets nobody else read its files", async () => {
    using directory = temporaryDirectory();
    const dir = join(directory.path, "a", "data");
    await using store = await openStore({ dir });
    await submit(store, 1);
    expect(statSync(dir).mode & 0o777).toBe(0o700);
    for (const file of ["flurry.db", "flurry.db-wal", "lock", "lock.pid"]) {
      expect([file, statSync(join(dir, file)).mode & 0o777]).toEqual([file, 0o600]);
    }
  });

  test("has all that it said was recorded after kill -9 at any point, and counts right", async () => {
    using directory = temporaryDirectory();
    const dir = directory.path;
    const jobs = new Set<string>();
    const ends = new Map<string, string>();
    for (const lines of KILLED_AFTER) {
      await using script = new Script(busy, [dir, "work"]);
      expect(await script.line()).toBe("open");
      for (let count = 0; count < lines; count += 1) note(await script.line(), jobs, ends);
      await script.kill();
    }
    {
      await using store = await openStore({ dir });
      for (const id of jobs) expect(await store.jobs.get(id)).toBeDefined();
      for (const [task, state] of ends) {
        const [id, index] = task.split(" ") as [string, string];
        expect([task, (await store.jobs.task(id, Number(index)))?.state]).toEqual([task, state]);
      }
    }
    expect(recount(dir)).toEqual([]);
    await finishAll(dir);
    expect(recount(dir)).toEqual([]);
  }, 120_000);

  test("removes the rows of jobs and drafts in the end, also of those that a restart found", async () => {
    using directory = temporaryDirectory();
    const dir = directory.path;
    {
      await using store = await openStore({ dir });
      const { job } = await submit(store, Array(3000).fill('"input"'));
      await store.jobs.cancel(job.id, "enough");
      await until(store, job.id, (stored) => stored.job.state === "canceled");
      await store.jobs.remove(job.id);
      const draft = await store.jobs.draft(newJob());
      await draft.add(Array(3000).fill('"input"'));
    }
    // Each opening does one step at least.
    let left = rowsOf(dir);
    for (let opened = 0; left > 0 && opened < 50; opened += 1) {
      await (await openStore({ dir }))[Symbol.asyncDispose]();
      const now = rowsOf(dir);
      expect(now).toBeLessThan(left);
      left = now;
    }
    expect(left).toBe(0);
  });
});

/** Rows of all that belongs to jobs. */
function rowsOf(dir: string): number {
  const database = new DatabaseSync(join(dir, "flurry.db"));
  const tables = ["jobs", "heads", "specs", "tasks", "inputs", "outputs", "events", "job_tags"];
  const counts = tables.map(
    (table) => (database.prepare(`SELECT count(*) AS n FROM ${table}`).get() as { n: number }).n,
  );
  database.close();
  return counts.reduce((sum, count) => sum + count, 0);
}

function note(line: string, jobs: Set<string>, ends: Map<string, string>): void {
  const [job, index, state] = line.split(" ") as [string, string?, string?];
  if (index === undefined || state === undefined) jobs.add(job);
  else ends.set(`${job} ${index}`, state);
}

/** Lets all jobs come to their end. */
async function finishAll(dir: string): Promise<void> {
  await using store = await openStore({ dir });
  await Promise.all(Array.from({ length: 50 }, () => runAll(store)));
  let cursor: string | undefined;
  do {
    const page = await store.jobs.list({ cursor, limit: 100 });
    for (const { job } of page.items) {
      const ended = await until(store, job.id, (stored) => stored.job.endedAt !== undefined);
      const { total, succeeded, failed, canceled } = ended.job.tasks;
      expect(succeeded + failed + canceled).toBe(total);
      const page = await store.jobs.results(job.id, { order: "index", limit: 10_000 });
      expect(page.items.map(({ index }) => index)).toEqual(Array.from({ length: total }, (_, at) => at));
    }
    cursor = page.next;
  } while (cursor !== undefined);
}
