import { describe, expect, test } from "bun:test";
import { rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { codeOf } from "../../errors/errors.ts";
import type { Store } from "../../runtime/jobs/ports.ts";
import { openStore } from "../../runtime/store/open.ts";
import { rejection } from "../support/agent-peer.ts";
import { claim, job, mustClaim, newJob, result, runAll, submit, until } from "../support/store-jobs.ts";
import { recount } from "../support/store-recount.ts";
import { canMount, smallTmpfs } from "../support/vm.ts";

const LARGE = { state: "succeeded", reason: "ok", result: result({ stdout: "x".repeat(60_000) }) } as const;

describe.if(canMount)("the embedded store on a full disk", () => {
  test("says NO_SPACE, has changed nothing, and goes on when there is room", async () => {
    using disk = smallTmpfs(12 * 1024);
    const dir = join(disk.path, "data");
    const filler = join(disk.path, "filler");
    {
      await using store = await openStore({ dir });
      const { job: submitted } = await submit(store, 60);
      const tokens: string[] = [];
      for (let count = 0; count < 50; count += 1) tokens.push((await mustClaim(store)).token);
      fill(filler);
      // What the files have room for already may still be recorded.
      const token = await firstRefused(tokens, async (next) => await store.queue.finish(next, LARGE));
      const before = await job(store, submitted.id);
      expect(before.tasks.succeeded).toBe(tokens.indexOf(token));
      for (const refused of [
        () => store.jobs.cancel(submitted.id, "x".repeat(100_000)),
        () => store.queue.finish(token, LARGE),
        () => submit(store, Array(100).fill("x".repeat(60_000))),
      ]) {
        expect((await rejection(refused())).code).toBe("NO_SPACE");
      }
      expect(await job(store, submitted.id)).toEqual(before);
      expect((await store.jobs.list({ limit: 9 })).items).toHaveLength(1);
      const events = await store.jobs.events(submitted.id, 0, 1000);
      expect(events.filter(({ type }) => type === "task.succeeded")).toHaveLength(tokens.indexOf(token));
      rmSync(filler);
      for (const left of tokens.slice(tokens.indexOf(token))) {
        expect(await store.queue.finish(left, LARGE)).toBe("recorded");
      }
      await runAll(store);
      expect((await job(store, submitted.id)).state).toBe("succeeded");
    }
    expect(recount(dir)).toEqual([]);
  });

  test("a cancellation that met a full disk goes on when there is room", async () => {
    using disk = smallTmpfs(16 * 1024);
    const dir = join(disk.path, "data");
    const filler = join(disk.path, "filler");
    {
      await using store = await openStore({ dir });
      const { job: submitted } = await submit(store, 20_000);
      const canceling = await store.jobs.cancel(submitted.id, "enough");
      expect(canceling.job.state).toBe("canceling");
      fill(filler);
      expect(await claim(store)).toBeUndefined();
      rmSync(filler);
      await until(store, submitted.id, (stored) => stored.job.state === "canceled");
    }
    expect(recount(dir)).toEqual([]);
  });

  test("is not opened on a disk that is full from the start", async () => {
    using disk = smallTmpfs(64);
    fill(join(disk.path, "filler"));
    expect((await rejection(openStore({ dir: join(disk.path, "data") }))).code).toBe("NO_SPACE");
  });

  test("a draft that is too large for the disk leaves room for its own removal, and for the work of others", async () => {
    using disk = smallTmpfs(40 * 1024);
    const dir = join(disk.path, "data");
    {
      await using store = await openStore({ dir });
      const { job: other } = await submit(store, 20);
      const most = await addAll(store);
      expect(most).toBeGreaterThan(5);
      await runAll(store, () => LARGE);
      expect((await job(store, other.id)).state).toBe("succeeded");
      // It is removed in the background, and then there is room for another one.
      while ((await addAll(store)) < most / 2) await new Promise((resolve) => setTimeout(resolve, 10));
    }
    expect(recount(dir)).toEqual([]);
  });

  test("a draft that met a full disk goes on where it was", async () => {
    using disk = smallTmpfs(32 * 1024);
    const filler = join(disk.path, "filler");
    await using store = await openStore({ dir: join(disk.path, "data") });
    await using draft = await store.jobs.draft(newJob());
    await draft.add(['"first"']);
    fill(filler);
    const inputs = Array.from({ length: 100 }, (_, at) => JSON.stringify(`${at} ${"x".repeat(20_000)}`));
    expect((await rejection(draft.add(inputs))).code).toBe("NO_SPACE");
    rmSync(filler);
    await draft.add(['"second"']);
    const { stored } = await draft.commit("hash");
    expect(stored.job.tasks.total).toBe(2);
    const claims = await runAll(store);
    expect(claims.map(({ input }) => input)).toEqual(['"first"', '"second"']);
  });
});

/** Adds inputs to a draft until the disk has no room for more, and gives it up. Returns how often it could. */
async function addAll(store: Store): Promise<number> {
  await using draft = await store.jobs.draft(newJob());
  const inputs = Array(100).fill(JSON.stringify("x".repeat(10_000)));
  let added = 0;
  const error = await rejection(
    (async () => {
      for (;;) {
        await draft.add(inputs);
        added += 1;
      }
    })(),
  );
  expect(error.code).toBe("NO_SPACE");
  return added;
}

/** The first token with which `use` says NO_SPACE. */
async function firstRefused(
  tokens: readonly string[],
  use: (token: string) => Promise<unknown>,
): Promise<string> {
  for (const token of tokens) {
    try {
      await use(token);
    } catch (error) {
      if (codeOf(error) === "NO_SPACE") return token;
      throw error;
    }
  }
  throw new Error("The disk has not been full");
}

/** Takes all that is left of a file system. */
function fill(file: string): void {
  for (const size of [1024 * 1024, 4096]) {
    try {
      for (;;) writeFileSync(file, new Uint8Array(size), { flag: "a" });
    } catch (error) {
      if (codeOf(error) !== "ENOSPC") throw error;
    }
  }
}
