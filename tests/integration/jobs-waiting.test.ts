import { describe, expect, test } from "bun:test";
import { FlurryError } from "../../errors/errors.ts";
import { GatewaySandbox, jobOf } from "../support/gateway-sandbox.ts";
import { type Bench, openBench, settle } from "../support/jobs-setup.ts";
import type { ScriptedTask } from "../support/scripted-runtime.ts";

/** A script that runs until it is aborted. */
const forEver = ({ signal }: ScriptedTask) =>
  new Promise<never>((_, reject) => signal.addEventListener("abort", reject, { once: true }));

async function waitingOf({ store, dispatcher }: Bench, id: string): Promise<string | undefined> {
  return dispatcher.waiting((await store.jobs.get(id))!);
}

/** Waits until a job has started children. */
async function started(bench: Bench, id: string): Promise<void> {
  await bench.until(id, ({ job }) => job.tasks.running > 0 && bench.runtime.live.size > 0);
}

describe("waiting()", () => {
  test("names the parent that is being made, and nothing once a task runs", async () => {
    const made = Promise.withResolvers<void>();
    await using bench = await openBench({ prepare: () => made.promise, script: forEver });
    const id = await bench.submit({ count: 2 });
    await bench.until(id, ({ job }) => job.tasks.running === 1);
    expect(await waitingOf(bench, id)).toBe("Its worker is being made ready");
    // The same parent is waited for by jobs of which no task is held.
    const other = await bench.submit({ count: 1 });
    expect(await waitingOf(bench, other)).toBe("Its worker is being made ready");
    made.resolve();
    await started(bench, id);
    expect(await waitingOf(bench, id)).toBeUndefined();
    await bench.jobs.cancel(id, "Enough");
    await bench.jobs.cancel(other, "Enough");
    await bench.ended(id);
    expect(await waitingOf(bench, id)).toBeUndefined();
  });

  test("names the places that others have taken", async () => {
    await using bench = await openBench({ slots: 1, script: forEver });
    await started(bench, await bench.submit({ count: 1 }));
    expect(await waitingOf(bench, await bench.submit({ count: 1 }))).toBe(
      "All places of the host are taken: 1",
    );
  });

  test("names the limit of the key", async () => {
    await using bench = await openBench({ slots: 4, script: forEver });
    const limits = { runningTasks: 1 };
    await bench.store.keys.create({ id: "k", hash: "h", name: "k", scopes: ["submit"], limits });
    await started(bench, await bench.submit({ count: 1 }, {}, { owner: "k" }));
    const id = await bench.submit({ count: 1 }, {}, { owner: "k" });
    expect(await waitingOf(bench, id)).toBe("Its key has as many running tasks as it may have");
  });

  test("names the memory that the host does not have", async () => {
    await using bench = await openBench({ start: false });
    const asked = Promise.withResolvers<void>();
    bench.runtime.admit = (_family, signal) => {
      asked.resolve();
      return new Promise((_, reject) => signal.addEventListener("abort", reject, { once: true }));
    };
    await bench.dispatcher.start();
    const id = await bench.submit({ count: 1 });
    await asked.promise;
    expect(await waitingOf(bench, id)).toBe("The host has no memory free for its next task");
  });

  test("names what is set aside with its reason, and tasks that wait for another try", async () => {
    await using bench = await openBench({
      slots: 1,
      random: () => 0.99,
      script: ({ spec }) => {
        if (spec.command![0] === "false") return { exitCode: 1 };
        throw new FlurryError("FORK_FAILED", "No child comes of it");
      },
    });
    const backoff = { initialMs: 3_600_000, maxMs: 3_600_000 };
    const failing = await bench.submit(
      { count: 1 },
      { worker: { image: "base", command: ["false"] }, retry: { maxAttempts: 2, backoff } },
    );
    await bench.until(failing, ({ job }) => job.tasks.retrying === 1);
    await settle();
    expect(await waitingOf(bench, failing)).toBe("Its tasks wait until they are tried again");
    const id = await bench.submit({ count: 5 }, { worker: { image: "broken", command: ["x"] } });
    await bench.until(id, () => bench.dispatcher.setAside().length > 0);
    await settle();
    expect(await waitingOf(bench, id)).toMatch(
      /^Its worker is not used until 2\d{3}-.*Z: FORK_FAILED: No child comes of it$/,
    );
  });

  test("is told by GET /v1/jobs/{id}", async () => {
    await using gateway = await GatewaySandbox.open();
    const { id } = await gateway.submit(jobOf(1));
    expect((await gateway.json(`/v1/jobs/${id}`)).waiting).toBe("All places of the host are taken: 0");
    await gateway.json(`/v1/jobs/${id}/cancel`, { method: "POST" }, 202);
    expect(await gateway.json<object>(`/v1/jobs/${id}`)).not.toHaveProperty("waiting");
  });
});
