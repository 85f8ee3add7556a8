import { describe, expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { join } from "node:path";
import type { ErrorCode } from "../../errors/codes.ts";
import { FlurryError } from "../../errors/errors.ts";
import { Jobs } from "../../runtime/jobs/jobs.ts";
import type { DispatchObserver } from "../../runtime/jobs/observer.ts";
import { ManualClock } from "../support/jobs-clock.ts";
import { type Bench, blobFiles, openBench, resultsOf, settle } from "../support/jobs-setup.ts";
import type { Script, ScriptedTask } from "../support/scripted-runtime.ts";
import { temporaryDirectory } from "../support/vm.ts";

const worker = { image: "base", command: ["true"] };

/** Fails with a code so often, and works then. */
function failsFirst(code: ErrorCode, times: number): Script {
  let left = times;
  return () => {
    if (left-- > 0) throw new FlurryError(code, `It was ${code}`);
    return { exitCode: 0 };
  };
}

/** Waits until the only task of a job has run so often and has been put back, and lets its wait pass. */
async function passWait(
  bench: Bench,
  clock: ManualClock,
  { id, runs, ms }: { id: string; runs: number; ms: number },
): Promise<void> {
  await bench.until(id, ({ job }) => job.tasks.running === 0 && bench.runtime.runs === runs);
  await settle();
  clock.advance(ms - 1);
  await settle();
  expect(bench.runtime.runs).toBe(runs);
  clock.advance(1);
}

describe("Dispatcher", () => {
  test("retries a task that fails as its policy says, and records its last attempt", async () => {
    const clock = new ManualClock();
    const script = ({ number }: ScriptedTask) => ({ exitCode: number });
    await using bench = await openBench({ clock, after: clock.after, script, random: () => 1 });
    const backoff = { initialMs: 60_000, factor: 3, maxMs: 100_000 };
    const id = await bench.submit({ count: 1 }, { retry: { maxAttempts: 3, backoff } });
    await passWait(bench, clock, { id, runs: 1, ms: 60_000 });
    await passWait(bench, clock, { id, runs: 2, ms: 100_000 });
    expect((await bench.ended(id)).job).toMatchObject({ state: "failed", tasks: { failed: 1 } });
    const [result] = await resultsOf(bench.store, id);
    expect(result).toMatchObject({ attempt: 3, exitCode: 3, state: "failed" });
    const types = (await bench.store.jobs.events(id, 0, 100)).map(({ type }) => type);
    expect(types.filter((type) => type === "task.retrying")).toHaveLength(2);
  });

  test("uses no attempt for failures of the infrastructure", async () => {
    const clock = new ManualClock();
    const script = failsFirst("CHILD_DIED", 3);
    await using bench = await openBench({ clock, after: clock.after, script, random: () => 1 });
    const id = await bench.submit({ count: 1 });
    await passWait(bench, clock, { id, runs: 1, ms: 500 });
    await passWait(bench, clock, { id, runs: 2, ms: 1000 });
    await passWait(bench, clock, { id, runs: 3, ms: 2000 });
    expect((await bench.ended(id)).job.state).toBe("succeeded");
    expect(await resultsOf(bench.store, id)).toMatchObject([{ attempt: 1, exitCode: 0 }]);
    expect(bench.runtime.runs).toBe(4);
  });

  test("gives up a task that the infrastructure fails again and again", async () => {
    const clock = new ManualClock();
    const script = failsFirst("FORK_FAILED", 100);
    await using bench = await openBench({ clock, after: clock.after, script });
    const id = await bench.submit({ count: 1 }, { retry: { maxAttempts: 100 } });
    for (let n = 1; n < 8; n++) {
      await bench.until(id, ({ job }) => job.tasks.running === 0 && bench.runtime.runs === n);
      await settle();
      clock.advance(400_000);
    }
    expect((await bench.ended(id)).job.state).toBe("failed");
    expect(bench.runtime.runs).toBe(8);
    const [result] = await resultsOf(bench.store, id);
    expect(result?.error).toMatchObject({ code: "INFRASTRUCTURE_FAILED" });
    expect(result?.error?.message).toContain("FORK_FAILED: It was FORK_FAILED");
  });

  test("takes a task up again whose child is killed", async () => {
    const begun = Promise.withResolvers<void>();
    const script = async ({ vm, signal }: ScriptedTask) => {
      if (vm !== "vm-1") return { exitCode: 0 };
      begun.resolve();
      return await new Promise<never>((_, reject) => signal.addEventListener("abort", reject));
    };
    const clock = new ManualClock();
    await using bench = await openBench({ script, clock, after: clock.after });
    const id = await bench.submit({ count: 1 });
    await begun.promise;
    bench.runtime.kill("vm-1");
    await bench.until(id, ({ job }) => job.tasks.queued === 1);
    await settle();
    clock.advance(1000);
    await bench.ended(id);
    expect(await resultsOf(bench.store, id)).toMatchObject([{ attempt: 1, state: "succeeded" }]);
    expect((await bench.store.jobs.task(id, 0))?.vm).toBe("vm-2");
  });

  test("fails at once when the user has asked for what is not there", async () => {
    const prepare = () => {
      throw new FlurryError("IMAGE_NOT_FOUND", 'There is no image "base"');
    };
    await using bench = await openBench({ prepare });
    const id = await bench.submit({ count: 3 }, { retry: { maxAttempts: 9 } });
    expect((await bench.ended(id)).job).toMatchObject({ state: "failed", tasks: { failed: 3 } });
    const results = await resultsOf(bench.store, id);
    expect(results.map(({ error }) => error?.code)).toEqual(Array(3).fill("IMAGE_NOT_FOUND"));
    expect(bench.runtime.runs).toBe(0);
    expect(bench.dispatcher.setAside()).toEqual([]);
  });

  test("gives a task its input, its place and its secrets, the later ones over the earlier ones", async () => {
    const seen: ScriptedTask[] = [];
    const script = (task: ScriptedTask) => {
      seen.push(task);
      return { exitCode: 0 };
    };
    await using bench = await openBench({ script, slots: 1 });
    await bench.store.secrets.put("token", { value: "s3cret" });
    const inputs = ["a string", { a: [1] }, "x".repeat(33_000), "a\0b"];
    const env = { FROM: "worker", KEPT: "worker", TOKEN: "no", FLURRY_TASK_INDEX: "no" };
    const id = await bench.submit(
      { inputs },
      {
        worker: { ...worker, env, secrets: { TOKEN: "token" }, timeoutMs: 5000 },
        env: { FROM: "job", TOKEN: "no" },
      },
    );
    expect((await bench.ended(id)).job.state).toBe("succeeded");
    const common = { FROM: "job", KEPT: "worker", TOKEN: "s3cret", FLURRY_JOB_ID: id, FLURRY_ATTEMPT: "1" };
    expect(seen[0]?.env).toEqual({
      ...common,
      FLURRY_TASK_COUNT: "4",
      FLURRY_TASK_INDEX: "0",
      FLURRY_TASK_INPUT: "a string",
    });
    expect(seen[1]?.env.FLURRY_TASK_INPUT).toBe('{"a":[1]}');
    expect(seen.slice(2).map((task) => "FLURRY_TASK_INPUT" in task.env)).toEqual([false, false]);
    expect(seen.map(({ stdin }) => new TextDecoder().decode(stdin))).toEqual([
      "a string",
      '{"a":[1]}',
      "x".repeat(33_000),
      "a\0b",
    ]);
    expect(seen[0]?.timeoutMs).toBe(5000);
  });

  test("fails a task whose secret has been removed since, without a child", async () => {
    await using bench = await openBench({ start: false });
    await bench.store.secrets.put("token", { value: "s3cret" });
    const id = await bench.submit({ count: 1 }, { worker: { ...worker, secrets: { TOKEN: "token" } } });
    await bench.store.secrets.remove("token");
    await bench.dispatcher.start();
    await bench.ended(id);
    const [result] = await resultsOf(bench.store, id);
    expect(result?.error).toEqual({
      code: "SECRET_NOT_FOUND",
      message: 'There is no secret "token" for TOKEN',
    });
    expect(bench.runtime.runs).toBe(0);
  });

  test("keeps 8 MiB of an attempt's log and 64 KiB of its stdout, and says once what is left out", async () => {
    const chunk = new Uint8Array(300_001).fill(97);
    const script = async (task: ScriptedTask) => {
      for (let n = 0; n < 40; n++) await task.print(chunk, n % 2 === 0 ? "stdout" : "stderr");
      return { exitCode: 0 };
    };
    await using bench = await openBench({ script });
    const id = await bench.submit({ count: 1 });
    await bench.ended(id);
    const [result] = await resultsOf(bench.store, id);
    expect(result).toMatchObject({ stdout: "a".repeat(65_536), stdoutTruncated: true });
    const bytes = { stdout: 0, stderr: 0, system: 0 };
    const said: string[] = [];
    for (let after = 0; ; ) {
      const chunks = await bench.store.logs.read(id, { after, limit: 10 });
      if (chunks.length === 0) break;
      for (const { stream, text } of chunks) {
        bytes[stream] += text.length;
        if (stream === "system") said.push(text);
      }
      after = chunks.at(-1)!.id;
    }
    expect(bytes.stdout + bytes.stderr).toBe(8 * 1024 * 1024);
    expect(said).toEqual(["The rest of the output was left out"]);
  });

  test("puts characters together that come in pieces, and leaves out one that the limit cuts", async () => {
    const text = `${"é".repeat(40_000)}end`;
    const bytes = new TextEncoder().encode(text);
    const script = async (task: ScriptedTask) => {
      for (let at = 0; at < bytes.length; at += 1001) await task.print(bytes.slice(at, at + 1001));
      return { exitCode: 0 };
    };
    await using bench = await openBench({ script });
    const id = await bench.submit({ count: 1 });
    await bench.ended(id);
    const chunks = await bench.store.logs.read(id, { after: 0, limit: 100 });
    expect(chunks.map((chunk) => chunk.text).join("")).toBe(text);
    expect((await resultsOf(bench.store, id))[0]?.stdout).toBe("é".repeat(32_768));
  });

  test("shows what a task printed while it still runs", async () => {
    const clock = new ManualClock();
    const release = Promise.withResolvers<void>();
    const printed = Promise.withResolvers<void>();
    const script = async (task: ScriptedTask) => {
      await task.print("so far");
      printed.resolve();
      await release.promise;
      return { exitCode: 0 };
    };
    await using bench = await openBench({ script, clock, after: clock.after });
    const id = await bench.submit({ count: 1 });
    await printed.promise;
    const appended = Promise.withResolvers<void>();
    using _listener = bench.store.logs.onAppend(() => appended.resolve());
    clock.advance(100);
    await appended.promise;
    expect(await bench.store.logs.read(id, { after: 0, limit: 10 })).toMatchObject([{ text: "so far" }]);
    release.resolve();
    await bench.ended(id);
  });

  test("keeps the artifacts of the attempt that counts, and removes those of the others", async () => {
    const script = async (task: ScriptedTask) => {
      await task.leave("out.txt", `attempt ${task.number}`);
      return { exitCode: task.number === 3 ? 0 : 1 };
    };
    await using bench = await openBench({ script });
    const id = await bench.submit({ count: 1 }, { retry: { maxAttempts: 3, backoff: { initialMs: 0 } } });
    expect((await bench.ended(id)).job.state).toBe("succeeded");
    const { artifact, blob } = (await bench.store.jobs.artifact(id, 0, "out.txt"))!;
    expect(artifact).toMatchObject({ size: 9, mode: 0o644, task: 0 });
    const content = await bench.store.blobs.get(blob);
    expect(await new Response(content).text()).toBe("attempt 3");
    expect(blobFiles(bench, id)).toHaveLength(1);
    expect(blob).toMatch(new RegExp(`^${id}/0/0-[A-Za-z0-9]+/0$`));
  });

  test("removes the artifacts of a result when its task is tried again, however many there are", async () => {
    const gate = { exitCode: 1 };
    const script = async (task: ScriptedTask) => {
      if (task.index % 500 === 0) await task.leave("out.txt", `ends with ${gate.exitCode}`);
      return { exitCode: gate.exitCode };
    };
    await using bench = await openBench({ script });
    // More than the store queues again in one step.
    const id = await bench.submit({ count: 1501 });
    await bench.ended(id);
    expect(blobFiles(bench, id)).toHaveLength(4);
    gate.exitCode = 0;
    await bench.jobs.retry(id);
    expect((await bench.ended(id)).job.state).toBe("succeeded");
    while ((await bench.store.queue.abandoned()).length > 0) await settle();
    expect(blobFiles(bench, id)).toHaveLength(4);
    for (const task of [0, 500, 1000, 1500]) {
      const { blob } = (await bench.store.jobs.artifact(id, task, "out.txt"))!;
      expect(await new Response(await bench.store.blobs.get(blob)).text()).toBe("ends with 0");
    }
  });

  test("removes them at the next start when the gateway ended before", async () => {
    using directory = temporaryDirectory();
    const dir = directory.path;
    let id = "";
    {
      const script = async (task: ScriptedTask) => {
        await task.leave("out.txt", "of a failure");
        return { exitCode: 1 };
      };
      await using bench = await openBench({ dir, script });
      id = await bench.submit({ count: 1 });
      await bench.ended(id);
    }
    {
      await using bench = await openBench({ dir, start: false });
      const removeAll = bench.store.blobs.removeAll;
      bench.store.blobs.removeAll = () => Promise.reject(new Error("Not now"));
      await bench.jobs.retry(id);
      await settle();
      bench.store.blobs.removeAll = removeAll;
      expect(blobFiles(bench, id)).toHaveLength(1);
      expect(await bench.store.queue.abandoned()).toMatchObject([{ job: id, index: 0 }]);
    }
    await using bench = await openBench({ dir });
    await bench.ended(id);
    expect(blobFiles(bench, id)).toEqual([]);
    expect(await bench.store.queue.abandoned()).toEqual([]);
  });

  test("removes the blobs and logs of a job that is removed", async () => {
    const script = async (task: ScriptedTask) => {
      await task.print("text");
      await task.leave("out.txt", "content");
      return { exitCode: 0 };
    };
    await using bench = await openBench({ script });
    const id = await bench.submit({ count: 2 });
    await bench.ended(id);
    await bench.jobs.remove(id);
    await bench.jobs[Symbol.asyncDispose]();
    // It stops with what it has begun: the next start goes on.
    await using again = new Jobs({
      store: bench.store,
      dispatcher: bench.dispatcher,
    });
    again.start();
    while ((await bench.store.jobs.removed()).length > 0) await settle();
    expect(existsSync(join(bench.dir, "blobs", id))).toBe(false);
    expect(await bench.store.logs.read(id, { after: 0, limit: 10 })).toEqual([]);
  });

  test("tells an observer, whose errors touch no task", async () => {
    const told: string[] = [];
    const observer: DispatchObserver = {
      claimed: ({ priority }) => told.push(`claimed ${priority}`),
      childStarted: () => told.push("started"),
      attemptEnded: ({ outcome, code }) => {
        told.push(`ended ${outcome} ${code}`);
        throw new Error("Cannot count");
      },
    };
    const script: Script = ({ index }) => {
      if (index === 1) throw new FlurryError("TASK_TIMEOUT", "Too long");
      return { exitCode: 0 };
    };
    await using bench = await openBench({ observer, script, slots: 1 });
    const id = await bench.submit({ count: 2 }, { priority: 3 });
    await bench.ended(id);
    await settle();
    expect(told).toEqual([
      ...["claimed 3", "started", "ended succeeded undefined"],
      ...["claimed 3", "started", "ended failed TASK_TIMEOUT"],
    ]);
  });
});
