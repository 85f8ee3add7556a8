import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "bun:test";
import type { Child } from "../../runtime/fork/child.ts";
import type { Parent } from "../../runtime/fork/parent.ts";
import type { RunTasksOptions, TaskEvent } from "../../runtime/jobs/run-tasks.ts";
import { Host } from "../../runtime/vm/host.ts";
import { rejection } from "../support/agent-peer.ts";
import { runInChildren, sh, type Task } from "../support/tasks.ts";
import { baseParent, NO_TRACES, SETUP_MS, TEST_MS, tracesOf } from "../support/vm.ts";

let host: Host;
let parent: Parent;
let children: Map<number, Child>;

beforeAll(async () => {
  host = await Host.open();
  parent = await baseParent(host);
}, SETUP_MS);

beforeEach(() => {
  children = new Map();
});

afterEach(() => {
  expect(tracesOf(host)).toEqual(NO_TRACES);
});

afterAll(async () => {
  await parent[Symbol.asyncDispose]();
  await host[Symbol.asyncDispose]();
});

function run(count: number, task: (index: number) => Task, changes: Partial<RunTasksOptions> = {}) {
  return runInChildren(parent, count, task, { children, ...changes });
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
