import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "bun:test";
import {
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { Admission } from "../../runtime/fork/admission.ts";
import type { Child } from "../../runtime/fork/child.ts";
import type { Parent } from "../../runtime/fork/parent.ts";
import { type RunTasksOptions, runTasks, type TaskEvent } from "../../runtime/jobs/run-tasks.ts";
import type { TaskSpec } from "../../runtime/jobs/task.ts";
import { Host } from "../../runtime/vm/host.ts";
import { rejection } from "../support/agent-peer.ts";
import {
  baseParent,
  canMount,
  NO_TRACES,
  SETUP_MS,
  smallTmpfs,
  TEST_MS,
  type TemporaryDirectory,
  temporaryDirectory,
  tracesOf,
} from "../support/vm.ts";

let host: Host;
let parent: Parent;
let directory: TemporaryDirectory;
let children: Map<number, Child>;

beforeAll(async () => {
  host = await Host.open();
  parent = await baseParent(host);
}, SETUP_MS);

beforeEach(() => {
  directory = temporaryDirectory();
  children = new Map();
});

afterEach(() => {
  directory[Symbol.dispose]();
  expect(tracesOf(host)).toEqual(NO_TRACES);
});

afterAll(async () => {
  await parent[Symbol.asyncDispose]();
  await host[Symbol.asyncDispose]();
});

type Task = Omit<TaskSpec, "index" | "env"> & { env?: Record<string, string> };

/** Runs tasks in children of the base image, as many at a time as asked for. */
function run(count: number, task: (index: number) => Task, changes: Partial<RunTasksOptions> = {}) {
  return runTasks({
    start: async ({ identity, signal }) => {
      const child = await parent.fork({ identity, signal });
      children.set(identity.index, child);
      return child;
    },
    admission: new Admission({ memoryBytes: Number.MAX_SAFE_INTEGER, slots: 2 }, parent.descriptor.ram.bytes),
    count,
    name: "task",
    ...changes,
    task: (index) => ({ env: {}, ...task(index) }),
  });
}

function sh(script: string): readonly string[] {
  return ["/bin/sh", "-c", script];
}

/** What tasks print, by task and stream, and the order of all events. */
function recorder() {
  const log: string[] = [];
  const output = new Map<string, string>();
  const onEvent = (event: TaskEvent) => {
    if (event.event === "output") {
      const key = `${event.task} ${event.stream}`;
      output.set(key, (output.get(key) ?? "") + Buffer.from(event.chunk).toString());
    } else log.push(`${event.event} ${event.task}`);
  };
  return { log, output, onEvent };
}

describe("runTasks()", () => {
  test(
    "runs every task in a VM of its own and gives the results by index",
    async () => {
      const { log, output, onEvent } = recorder();
      const script =
        'echo "$FLURRY_TASK_INDEX of $FLURRY_TASK_COUNT ($FLURRY_ATTEMPT) on $(uname -n) $MORE"; exit $MORE';
      const results = await run(
        4,
        (index) => ({ argv: sh(script), env: { MORE: String(index % 2), FLURRY_TASK_INDEX: "a lie" } }),
        { onEvent },
      );
      expect(results.map(({ index, state, outcome }) => [index, state, outcome?.code])).toEqual([
        [0, "succeeded", 0],
        [1, "failed", 1],
        [2, "succeeded", 0],
        [3, "failed", 1],
      ]);
      for (const { error, totalMs, times, privateBytes } of results) {
        expect(error).toBeUndefined();
        expect(totalMs).toBeGreaterThan(times!.answerMs);
        expect(privateBytes).toBeGreaterThan(1 << 20);
      }
      for (const index of [0, 1, 2, 3]) {
        expect(output.get(`${index} stdout`)).toBe(`${index} of 4 (1) on task-${index} ${index % 2}\n`);
        expect(log.indexOf(`started ${index}`)).toBeLessThan(log.indexOf(`ended ${index}`));
        expect(log.filter((line) => line.endsWith(` ${index}`))).toEqual([
          `started ${index}`,
          `ended ${index}`,
        ]);
      }
      expect(new Set([...children.values()].map(({ id }) => id)).size).toBe(4);
    },
    TEST_MS,
  );

  test(
    "tells of a task what its error was, and the others go on",
    async () => {
      const results = await run(4, (index) => {
        if (index === 0) return { argv: ["/no/such/program"] };
        if (index === 1) return { argv: sh("kill -SEGV $$") };
        if (index === 2) return { argv: sh("sleep 1000"), timeoutMs: 300 };
        return { argv: sh("cat /in"), files: [{ path: "/in", data: Buffer.from("file") }] };
      });
      expect(results[0]).toMatchObject({ state: "failed", error: { code: "TASK_FAILED" } });
      expect(results[0]!.error!.message).toContain("/no/such/program");
      expect(results[1]).toMatchObject({ state: "failed", outcome: { signal: "SIGSEGV" } });
      expect(results[2]).toMatchObject({ state: "failed", error: { code: "TASK_TIMEOUT" } });
      expect(results[2]!.error!.message).toContain("300 ms");
      expect(results[3]).toMatchObject({ state: "succeeded", outcome: { code: 0 } });
    },
    TEST_MS,
  );

  test(
    "says CHILD_DIED when a VM ends in mid-task, however it does",
    async () => {
      const { onEvent } = recorder();
      const results = await run(
        4,
        (index) => {
          if (index === 0) return { argv: sh("echo here; sleep 1000") };
          if (index === 1) return { argv: sh("echo c > /proc/sysrq-trigger; sleep 1000") };
          if (index === 2) return { argv: sh("echo here; sleep 1000") };
          return { argv: sh("echo fine") };
        },
        {
          onEvent: (event) => {
            onEvent(event);
            if (event.event !== "output") return;
            const child = children.get(event.task)!;
            if (event.task === 0) process.kill(child.pid, "SIGKILL");
            if (event.task === 2) child.agent.close();
          },
        },
      );
      expect(results.map(({ state, error }) => error?.code ?? state)).toEqual([
        "CHILD_DIED",
        "CHILD_DIED",
        "CHILD_DIED",
        "succeeded",
      ]);
      expect(results[0]!.error!.message).toContain("killed by SIGKILL");
      expect(results[1]!.error!.message).toContain("exited with status 0");
      expect(results[2]!.error!.message).toContain("closed the channel");
    },
    TEST_MS,
  );

  test(
    "says TASK_TIMEOUT when a VM stands still in mid-task, and leaves nothing of it",
    async () => {
      const [result] = await run(1, () => ({ argv: sh("echo here; sleep 1000"), timeoutMs: 1500 }), {
        onEvent: (event) => {
          if (event.event === "output") process.kill(children.get(event.task)!.pid, "SIGSTOP");
        },
      });
      expect(result).toMatchObject({ state: "failed", error: { code: "TASK_TIMEOUT" } });
    },
    TEST_MS,
  );

  test(
    "ends with ABORTED at an abort, when nothing is under way any more",
    async () => {
      const abort = new AbortController();
      const { log, onEvent } = recorder();
      const running = run(5, () => ({ argv: sh("echo here; sleep 1000") }), {
        signal: abort.signal,
        onEvent: (event) => {
          onEvent(event);
          if (event.event === "output" && event.task === 1) abort.abort();
        },
      });
      expect((await rejection(running)).code).toBe("ABORTED");
      expect(tracesOf(host)).toEqual(NO_TRACES);
      // Those that waited for a place have not begun.
      expect(log.filter((line) => /[234]$/.test(line))).toEqual([]);
    },
    TEST_MS,
  );

  test(
    "rejects with the caller's own error when a handler throws it, and ends the other tasks",
    async () => {
      const running = run(5, () => ({ argv: sh("sleep 1000"), timeoutMs: TEST_MS }), {
        onEvent: ({ event, task }) => {
          if (event === "started" && task === 1)
            throw Object.assign(new Error("the pipe is gone"), { code: "EPIPE" });
        },
      });
      const error = await rejection(running);
      expect(error.message).toBe("the pipe is gone");
      expect(tracesOf(host)).toEqual(NO_TRACES);
    },
    TEST_MS,
  );

  test(
    "holds a task back while the handler of its output is busy",
    async () => {
      const gate = Promise.withResolvers<void>();
      const opened = Promise.withResolvers<void>();
      let received = 0;
      let held = true;
      let doneWhileHeld = false;
      const running = run(1, () => ({ argv: sh("head -c 8M /dev/zero; echo done >&2") }), {
        onEvent: async (event) => {
          if (event.event !== "output") return;
          if (event.stream === "stderr") doneWhileHeld = held;
          else received += event.chunk.length;
          opened.resolve();
          if (held) await gate.promise;
        },
      });
      await opened.promise;
      // Time enough to write all of it, were nobody in the way.
      const child = children.get(0)!;
      await child.agent.run(sh("head -c 8M /dev/zero > /dev/null; sleep 0.5"));
      const whileHeld = received;
      held = false;
      gate.resolve();
      const [result] = await running;
      expect(whileHeld).toBeLessThan(64 * 1024);
      expect(doneWhileHeld).toBe(false);
      expect(received).toBe(8 << 20);
      expect(result).toMatchObject({ state: "succeeded" });
    },
    TEST_MS,
  );
});

describe("what a task leaves in /out", () => {
  const outDir = (index: number) => join(directory.path, String(index));

  /** Runs one task with outputs. */
  async function leave(script: string, changes: Partial<Task> = {}) {
    const [result] = await run(1, (index) => ({ argv: sh(script), outDir: outDir(index), ...changes }));
    return result!;
  }

  test(
    "arrives with its directories, modes and bytes, without symbolic links and devices",
    async () => {
      const result =
        await leave(`cd /out; mkdir -p a/b/c empty; printf one > a/b/c/1; printf 'two\\n' > 2; : > none
      head -c 300000 /dev/zero | tr '\\0' z > 'a/large file'; chmod 750 2; chmod 600 none
      ln -s /etc/passwd link; ln -s .. a/up; mkfifo pipe; printf x > '$(touch pwned)'`);
      expect(result).toMatchObject({ state: "succeeded", outcome: { code: 0, files: 5 } });
      const out = outDir(0);
      expect(readdirSync(out, { recursive: true }).map(String).sort()).toEqual(
        ["$(touch pwned)", "2", "a", "a/b", "a/b/c", "a/b/c/1", "a/large file", "empty", "none"].sort(),
      );
      expect(readFileSync(join(out, "a/b/c/1"), "utf8")).toBe("one");
      expect(readFileSync(join(out, "2"), "utf8")).toBe("two\n");
      expect(statSync(join(out, "2")).mode & 0o7777).toBe(0o750);
      expect(statSync(join(out, "none"))).toMatchObject({ size: 0 });
      expect(readFileSync(join(out, "a/large file")).equals(Buffer.alloc(300_000, "z"))).toBe(true);
      expect(readdirSync(directory.path)).toEqual(["0"]);
    },
    TEST_MS,
  );

  test(
    "never brings bits with it that give privileges here",
    async () => {
      await leave("printf x > /out/set; chmod 6755 /out/set");
      expect(lstatSync(join(outDir(0), "set")).mode & 0o7777).toBe(0o755);
    },
    TEST_MS,
  );

  test(
    "arrives also of a task that failed, and not of one that was ended",
    async () => {
      const failed = await leave("echo partial > /out/log; exit 3");
      expect(failed).toMatchObject({ state: "failed", outcome: { code: 3, files: 1 } });
      expect(readFileSync(join(outDir(0), "log"), "utf8")).toBe("partial\n");
      const ended = await leave("echo partial > /out/log; sleep 1000", {
        timeoutMs: 500,
        outDir: join(directory.path, "ended"),
      });
      expect(ended.error?.code).toBe("TASK_TIMEOUT");
      expect(existsSync(join(directory.path, "ended"))).toBe(false);
      expect(readdirSync(directory.path)).toEqual(["0"]);
    },
    TEST_MS,
  );

  test(
    "is refused when it claims more than the guest has memory",
    async () => {
      const result = await leave("truncate -s 100G /out/bomb");
      expect(result).toMatchObject({ state: "failed", error: { code: "TASK_FAILED" } });
      expect(result.error!.message).toContain(String(100 * 2 ** 30));
      expect(readdirSync(directory.path)).toEqual([]);
    },
    TEST_MS,
  );

  test(
    "is refused when it grows while it is fetched, and appears not at all",
    async () => {
      const grow = "(while :; do head -c 100K /dev/zero; done) >> /out/growing 2>/dev/null </dev/null &";
      const result = await leave(
        `head -c 20M /dev/zero > /out/growing; setsid sh -c '${grow}' >/dev/null 2>&1`,
      );
      expect(result).toMatchObject({ state: "failed", error: { code: "TASK_FAILED" } });
      expect(result.error!.message).toContain("grew");
      expect(readdirSync(directory.path)).toEqual([]);
    },
    TEST_MS,
  );

  test(
    "does not go over what is there already",
    async () => {
      mkdirSync(outDir(0));
      writeFileSync(join(outDir(0), "precious"), "mine");
      const result = await leave("echo theirs > /out/precious");
      expect(result.state).toBe("failed");
      expect(readFileSync(join(outDir(0), "precious"), "utf8")).toBe("mine");
      expect(readdirSync(directory.path)).toEqual(["0"]);
    },
    TEST_MS,
  );

  test.skipIf(!canMount)(
    "says NO_SPACE when the disk for it is full, and leaves nothing there",
    async () => {
      using disk = smallTmpfs(1024);
      const result = await leave("head -c 3M /dev/zero | tr '\\0' x > /out/large", {
        outDir: join(disk.path, "0"),
      });
      expect(result).toMatchObject({ state: "failed", error: { code: "NO_SPACE" } });
      expect(readdirSync(disk.path)).toEqual([]);
    },
    TEST_MS,
  );
});
