import { afterAll, afterEach, beforeAll, describe, expect, spyOn, test } from "bun:test";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import type { SignedReceipt, TaskResult } from "../../runtime/api/mod.ts";
import { Parent } from "../../runtime/fork/parent.ts";
import { familyOf } from "../../runtime/jobs/family.ts";
import { processesOf } from "../../runtime/vm/owner.ts";
import { VmTaskRuntime } from "../../runtime/workers/vm-task-runtime.ts";
import { rejection } from "../support/agent-peer.ts";
import { eventually, GatewaySandbox } from "../support/gateway-sandbox.ts";
import { SETUP_MS, stopProcess, TEST_MS, type TemporaryDirectory } from "../support/vm.ts";
import { ChannelCutter, canCutChannels, runningChildren } from "../support/workers-children.ts";
import { attempt, homeWithImages, never, script } from "../support/workers-runtime.ts";

const warm = {
  files: [
    { path: "/opt/data/greeting", text: "hello ä" },
    { path: "/opt/tool", base64: Buffer.from("#!/bin/sh\necho tool $1\n").toString("base64"), mode: 0o755 },
  ],
  warmUp: ["/bin/sh", "-c", "/opt/tool warm > /tmp/warm; env > /tmp/env"],
};

let home: TemporaryDirectory;
let runtime: VmTaskRuntime;
let cutter: ChannelCutter;

beforeAll(async () => {
  home = await homeWithImages();
  runtime = await VmTaskRuntime.open({ home: home.path, slots: 2 });
  cutter = await ChannelCutter.make();
  const spec = script("", warm);
  await runtime.prepare(familyOf(spec), spec, never);
}, SETUP_MS);

afterEach(() => {
  expect(runningChildren(runtime.host.owner.run)).toEqual([]);
});

afterAll(async () => {
  await runtime[Symbol.asyncDispose]();
  expect(existsSync(runtime.host.owner.run)).toBe(false);
  expect(processesOf(runtime.host.owner.run)).toEqual([]);
  cutter[Symbol.dispose]();
  home[Symbol.dispose]();
}, TEST_MS);

describe("VmTaskRuntime.run()", () => {
  test(
    "gives a command its input, its variables and the parent's files, and takes what it leaves",
    async () => {
      const spec = script(
        `read -r line; echo "$line|$A|$FLURRY_TASK_INDEX|$(uname -n)|$(pwd)|$(cat /opt/data/greeting /tmp/warm)"
        echo $FLURRY_VM_ID >&2; /opt/tool now > /out/tool; mkdir -p /out/a/b; printf x > /out/a/b/c; exit 3`,
        { ...warm, cwd: "/opt" },
      );
      const before = Date.now();
      const result = await attempt(runtime, spec, {
        index: 7,
        name: "a job: ä",
        env: { A: "1", FLURRY_TASK_INDEX: "7" },
        stdin: Buffer.from("input\nmore"),
      });
      expect(result.stdout).toBe("input|1|7|a-job--7|/opt|hello ätool warm\n");
      expect(result.exitCode).toBe(3);
      expect(result.signal).toBeUndefined();
      expect(result.artifacts).toEqual({ tool: "tool now\n", "a/b/c": "x" });
      const { vm, beganAt, runningAt, identifiedAt } = result.started!;
      expect(result.stderr).toBe(`${vm}\n`);
      const times = [before, beganAt, runningAt, identifiedAt, Date.now()];
      expect(times.toSorted((a, b) => a - b)).toEqual(times);
    },
    TEST_MS,
  );

  test(
    "ends the input with an end of file, and does not mind a command that reads none of it",
    async () => {
      const read = await attempt(runtime, script("wc -c", warm), { stdin: Buffer.alloc(64 * 1024, "x") });
      expect(read).toMatchObject({ exitCode: 0, stdout: "65536\n" });
      const unread = await attempt(runtime, script("kill -TERM $$", warm), { stdin: Buffer.alloc(1 << 20) });
      expect(unread).toMatchObject({ signal: "SIGTERM" });
    },
    TEST_MS,
  );

  test(
    "runs tasks of two families at once, and tells their parents apart",
    async () => {
      const plain = script("cat /tmp/warm 2>&1; echo end");
      const [one, two] = await Promise.all([
        attempt(runtime, script("cat /tmp/warm; sleep 0.2", warm)),
        attempt(runtime, plain),
      ]);
      expect(one.stdout).toBe("tool warm\n");
      expect(two.stdout).toMatch(/No such file.*\nend\n$/);
      expect(runtime.readiness(familyOf(plain))).toEqual({ state: "ready" });
    },
    TEST_MS,
  );

  test(
    "lets a task's variables into its child only: not into the parent, nor into another child",
    async () => {
      const secret = `secret-${crypto.randomUUID()}`;
      const spec = script('[ -n "$SECRET" ] && echo set; cat /tmp/env; cat /tmp/left', {
        ...warm,
        env: { SECRET: secret },
      });
      const first = await attempt(runtime, spec, { env: { SECRET: secret } });
      expect(first.stdout).toMatch(/^set\n/);
      const second = await attempt(runtime, spec);
      expect(first.stdout + second.stdout).not.toContain(secret);
      expect(second.stdout).not.toContain("set\n");
      const parents = join(home.path, "parents");
      const kept = readdirSync(parents, { recursive: true, withFileTypes: true }).filter((file) =>
        file.isFile(),
      );
      expect(kept.length).toBeGreaterThan(2);
      for (const { parentPath, name } of kept) {
        expect(readFileSync(join(parentPath, name)).includes(secret)).toBe(false);
      }
    },
    TEST_MS,
  );

  test(
    "says TASK_TIMEOUT when a command takes too long, and TASK_FAILED when it cannot be run",
    async () => {
      const late = await rejection(
        attempt(runtime, script("echo here; sleep 1000", warm), { timeoutMs: 700 }),
      );
      expect(late.code).toBe("TASK_TIMEOUT");
      const missing = script("", { ...warm, command: ["/no/such/program"] });
      const failed = await rejection(attempt(runtime, missing));
      expect(failed).toMatchObject({ code: "TASK_FAILED" });
      expect(failed.message).toContain("/no/such/program");
    },
    TEST_MS,
  );

  test(
    "rejects with the caller's own error when it takes no event or no artifact",
    async () => {
      const gone = () => {
        throw new Error("the lease is gone");
      };
      const spec = script("echo x | tee /out/x", warm);
      for (const io of [{ started: gone }, { output: gone }, { artifact: gone }]) {
        expect((await rejection(attempt(runtime, spec, { io }))).message).toBe("the lease is gone");
      }
    },
    TEST_MS,
  );

  test(
    "leaves nothing of an attempt that is aborted, before it begins or in its middle",
    async () => {
      const spec = script("echo here; sleep 1000", warm);
      const family = familyOf(spec);
      const io = { started: () => undefined, output: () => undefined, artifact: async () => undefined };
      const start = (signal: AbortSignal, more = {}) =>
        rejection(
          runtime.run(
            { family, spec, job: "j", owner: "", index: 0, name: "t", env: {} },
            { ...io, ...more },
            signal,
          ),
        );
      expect((await start(AbortSignal.abort())).code).toBe("ABORTED");
      const early = new AbortController();
      const aborted = start(early.signal);
      setImmediate(() => early.abort());
      expect((await aborted).code).toBe("ABORTED");
      expect(runningChildren(runtime.host.owner.run)).toEqual([]);
      const late = new AbortController();
      expect((await start(late.signal, { output: () => late.abort() })).code).toBe("ABORTED");
    },
    TEST_MS,
  );
});

describe("a child that is lost", () => {
  /** Runs a task, and does something to its child once it has printed. */
  function lose(lost: VmTaskRuntime, act: (child: { pid: number; dir: string }) => void | Promise<void>) {
    const output = async () => {
      const [child] = runningChildren(lost.host.owner.run);
      await act(child!);
    };
    return rejection(attempt(lost, script("echo here; sleep 1000", warm), { io: { output } }));
  }

  test(
    "is CHILD_DIED when its process is killed",
    async () => {
      const error = await lose(runtime, ({ pid }) => void process.kill(pid, "SIGKILL"));
      expect(error.code).toBe("CHILD_DIED");
      expect(error.message).toContain("SIGKILL");
    },
    TEST_MS,
  );

  test.skipIf(!canCutChannels)(
    "is CHILD_DIED, and its process ended, when the channel of its agent is cut",
    async () => {
      const error = await lose(runtime, (child) => cutter.cut(child));
      expect(error.code).toBe("CHILD_DIED");
      expect(error.message).toContain("closed the channel");
    },
    TEST_MS,
  );

  test(
    "is CHILD_DIED, and its process ended, when it answers no more",
    async () => {
      await using strict = await VmTaskRuntime.open({ home: home.path, slots: 1, silenceMs: 1000 });
      const error = await lose(strict, ({ pid }) => stopProcess(pid));
      expect(error.code).toBe("CHILD_DIED");
      expect(error.message).toContain("not answered");
      expect(runningChildren(strict.host.owner.run)).toEqual([]);
    },
    TEST_MS,
  );

  test(
    "does not keep the next one from running",
    async () => {
      expect(await attempt(runtime, script("echo fine", warm))).toMatchObject({ stdout: "fine\n" });
    },
    TEST_MS,
  );
});

describe("a task of a gateway", () => {
  test(
    "is done by another child when the first one has not proven who it is",
    async () => {
      const fork = Parent.prototype.fork;
      using spy = spyOn(Parent.prototype, "fork");
      spy.mockImplementationOnce(function (this: Parent, options) {
        return fork.call(this, { ...options, timeoutMs: 1 });
      });
      await using gateway = await GatewaySandbox.open({
        runtime: () => VmTaskRuntime.open({ home: home.path, slots: 1 }),
      });
      const worker = script("echo $FLURRY_VM_ID", warm);
      const job = await gateway.submit({ worker, tasks: { count: 1 }, retry: { maxAttempts: 1 } });
      await eventually(async () => (await gateway.json(`/v1/jobs/${job.id}`)).state === "succeeded");
      expect(spy).toHaveBeenCalledTimes(2);
      const results = await (await gateway.fetch(`/v1/jobs/${job.id}/results`)).text();
      const { stdout } = JSON.parse(results.trim().split("\n")[0]!) as TaskResult;
      const { receipt } = await gateway.json<SignedReceipt>(`/v1/vms/${stdout!.trim()}/receipt`);
      expect(receipt).toMatchObject({ vm: stdout!.trim(), read: { index: 0, reseeded: true } });
      const metrics = await (await gateway.fetch("/metrics")).text();
      expect(metrics).toContain('flurry_children_unproven_total{field="answer"} 1');
      expect(metrics).toContain('flurry_attempts_total{outcome="infrastructure",code="CHILD_UNPROVEN"} 1');
    },
    TEST_MS,
  );
});
