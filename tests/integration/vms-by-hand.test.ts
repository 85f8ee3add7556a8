import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { familyOf } from "../../runtime/jobs/family.ts";
import { VmTaskRuntime } from "../../runtime/workers/vm-task-runtime.ts";
import type { ForkOutcome, VmInfo } from "../../runtime/workers/vms/port.ts";
import { rejection } from "../support/agent-peer.ts";
import { SETUP_MS, TEST_MS, type TemporaryDirectory } from "../support/vm.ts";
import { attempt, homeWithImages, never, script } from "../support/workers-runtime.ts";

let home: TemporaryDirectory;
let runtime: VmTaskRuntime;
const spec = script("true");
const source = { family: familyOf(spec), spec };
const me = { id: "me", vms: 4 };

beforeAll(async () => {
  home = await homeWithImages();
  runtime = await VmTaskRuntime.open({ home: home.path });
  await runtime.prepare(source.family, spec, never);
}, SETUP_MS);

afterAll(async () => {
  await runtime[Symbol.asyncDispose]();
  home[Symbol.dispose]();
});

/** Runs a shell's command in a VM; what it prints. */
async function sh(vm: string, command: string): Promise<string> {
  const program = await runtime.vms.exec(
    vm,
    ["sh", "-c", command],
    { signal: AbortSignal.timeout(30_000) },
    "me",
  );
  const [stdout, exit] = await Promise.all([new Response(program.stdout).text(), program.exited]);
  expect(exit).toEqual({ code: 0 });
  return stdout.trim();
}

function vmsOf(outcomes: readonly ForkOutcome[]): VmInfo[] {
  return outcomes.flatMap((outcome) => (outcome.status === "fulfilled" ? [outcome.vm] : []));
}

describe("VMs by hand", () => {
  test(
    "are forked as they are, go on apart, and end with all that were forked from them",
    async () => {
      const root = await runtime.vms.create(source, me, never);
      expect(root).toMatchObject({
        owner: "me",
        image: "base",
        parent: null,
        index: 0,
        generation: 0,
        task: null,
      });
      await sh(
        root.id,
        "echo before > /tmp/f; (while sleep 0.1; do date +%s%N > /tmp/clock; done) < /dev/null > /dev/null 2>&1 &",
      );
      const children = vmsOf(await runtime.vms.fork(root.id, 2, me, never));
      expect(children.map(({ parent, index, generation }) => [parent, index, generation])).toEqual([
        [root.id, 1, 1],
        [root.id, 2, 1],
      ]);
      await sh(root.id, "echo after > /tmp/f");
      await sh(children[0]!.id, "echo first >> /tmp/f");
      expect(await Promise.all([root, ...children].map(({ id }) => sh(id, "cat /tmp/f")))).toEqual([
        "after",
        "before\nfirst",
        "before",
      ]);
      // A program that ran goes on in each of them.
      for (const { id } of [root, ...children]) {
        const was = await sh(id, "cat /tmp/clock");
        await sh(id, `while [ "$(cat /tmp/clock)" = ${was} ]; do sleep 0.05; done`);
      }
      const [grandchild] = vmsOf(await runtime.vms.fork(children[0]!.id, 1, me, never));
      expect(grandchild).toMatchObject({ parent: children[0]!.id, generation: 2 });
      expect(await sh(grandchild!.id, "cat /tmp/f")).toBe("before\nfirst");

      // Four are all that it may have.
      expect(await rejection(runtime.vms.create(source, me, never))).toMatchObject({ code: "LIMIT_REACHED" });
      expect(await rejection(runtime.vms.fork(root.id, 1, me, never))).toMatchObject({
        code: "LIMIT_REACHED",
      });
      // To others there is no such VM.
      expect(await rejection(Promise.try(() => runtime.vms.kill(root.id, "other")))).toMatchObject({
        code: "VM_NOT_FOUND",
      });
      expect(runtime.vms.list("other")).toEqual([]);
      expect(runtime.vms.list("me")).toHaveLength(4);

      expect((await runtime.vms.kill(children[0]!.id, "me")).sort()).toEqual(
        [children[0]!.id, grandchild!.id].sort(),
      );
      expect(
        runtime.vms
          .list(undefined)
          .map(({ id }) => id)
          .sort(),
      ).toEqual([root.id, children[1]!.id].sort());
      expect(await runtime.vms.kill(root.id, undefined)).toHaveLength(2);
      expect(runtime.vms.list(undefined)).toEqual([]);
    },
    TEST_MS,
  );

  test(
    "get places for as many children as their owner may have, and say of the others that they have none",
    async () => {
      const root = await runtime.vms.create(source, me, never);
      const outcomes = await runtime.vms.fork(root.id, 5, me, never);
      expect(outcomes.map(({ status }) => status)).toEqual([
        ...["fulfilled", "fulfilled", "fulfilled"],
        ...["rejected", "rejected"],
      ] as (typeof outcomes)[number]["status"][]);
      expect(outcomes[4]).toMatchObject({ error: { code: "LIMIT_REACHED" } });
      await runtime.vms.kill(root.id, "me");
      const ended = AbortSignal.abort();
      expect(await rejection(runtime.vms.create(source, me, ended))).toMatchObject({ code: "ABORTED" });
      expect(runtime.vms.list(undefined)).toEqual([]);
    },
    TEST_MS,
  );

  test(
    "are kept under a name, with what runs in them, for a runtime that comes later",
    async () => {
      const root = await runtime.vms.create(source, me, never);
      const counting = "i=0; while :; do i=$((i+1)); echo $i > /tmp/i; sleep 0.05; done";
      const program = await runtime.vms.exec(root.id, ["sh", "-c", counting], {}, "me");
      program.exited.catch(() => undefined);
      await sh(
        root.id,
        "while ! [ -s /tmp/i ]; do sleep 0.05; done; dd if=/dev/urandom of=/tmp/big bs=1M count=40 2>&1; sync",
      );
      const sum = await sh(root.id, "sha1sum < /tmp/big");
      const kept = await runtime.vms.checkpoint(root.id, "one", me, never);
      expect(kept).toMatchObject({ name: "one", owner: "me", image: "base", vm: root.id, generation: 0 });
      expect(kept.storedBytes).toBeGreaterThan(40 << 20);
      expect(await rejection(runtime.vms.checkpoint(root.id, "one", me, never))).toMatchObject({
        code: "CHECKPOINT_EXISTS",
      });
      await sh(root.id, "rm /tmp/big");
      await runtime[Symbol.asyncDispose]();

      runtime = await VmTaskRuntime.open({ home: home.path });
      expect(runtime.vms.list(undefined)).toEqual([]);
      expect(await runtime.vms.checkpoints("me")).toEqual([kept]);
      expect(await runtime.vms.checkpoints("other")).toEqual([]);
      const other = { id: "other" };
      expect(await rejection(runtime.vms.create({ checkpoint: "one" }, other, never))).toMatchObject({
        code: "CHECKPOINT_NOT_FOUND",
      });
      const woken = await runtime.vms.create({ checkpoint: "one" }, me, never);
      expect(woken).toMatchObject({ checkpoint: "one", generation: 0, parent: null });
      expect(await sh(woken.id, "sha1sum < /tmp/big")).toBe(sum);
      const was = await sh(woken.id, "cat /tmp/i");
      await sh(woken.id, `while [ "$(cat /tmp/i)" -le ${was} ]; do sleep 0.05; done`);

      // What was made of it goes on, and forks, when its name is gone.
      await runtime.vms.removeCheckpoint("one", "me");
      expect(await runtime.vms.checkpoints(undefined)).toEqual([]);
      const [child] = vmsOf(await runtime.vms.fork(woken.id, 1, me, never));
      expect(await sh(child!.id, "sha1sum < /tmp/big")).toBe(sum);
      await runtime.vms.kill(woken.id, "me");
      expect(await rejection(runtime.vms.create({ checkpoint: "one" }, me, never))).toMatchObject({
        code: "CHECKPOINT_NOT_FOUND",
      });
      const stored = () =>
        readdirSync(join(home.path, "checkpoints")).filter((name) => /^[0-9a-f]{64}$/.test(name));
      expect(stored()).toEqual([]);
    },
    TEST_MS,
  );

  test(
    "are not forked without end: who tries is refused, and all of it goes with the task",
    async () => {
      const bomb =
        'n=0; while id=$(flurry fork 2) && [ $n -lt 50 ]; do n=$((n+1)); done; echo "refused after $n"; sleep 1';
      const most = { count: 0 };
      const seen = setInterval(() => {
        most.count = Math.max(most.count, runtime.vms.list("bomber").length);
      }, 5);
      const { exitCode, stderr } = await attempt(runtime, script(bomb, { forks: { max: 5 } }), {
        owner: "bomber",
      });
      clearInterval(seen);
      expect(exitCode).toBe(0);
      expect(stderr).toContain("TICKET_REFUSED");
      // The task's own VM, and five that were forked.
      expect(most.count).toBeLessThanOrEqual(6);
      expect(most.count).toBeGreaterThan(2);
      expect(runtime.vms.list(undefined)).toEqual([]);
    },
    TEST_MS,
  );

  test(
    "of a task's own forks are seen, counted as the owner's, and are lines of its output",
    async () => {
      const forking = script(
        'id=$(flurry fork 3); [ "$id" = 0 ] || { echo "I am $id"; flurry exit 0; }; flurry join; flurry fork 1 || echo refused',
        { forks: { max: 2 } },
      );
      const { stdout, exitCode } = await attempt(runtime, forking, { owner: "me", maxVms: 2 });
      const lines = stdout.trim().split("\n");
      expect(exitCode).toBe(0);
      expect(lines.filter((line) => line.startsWith("["))).toEqual(
        expect.arrayContaining(["[t1.1] I am 1", "[t1.2] I am 2"]),
      );
      expect(lines).toEqual(expect.arrayContaining(["1 exited 0", "2 exited 0"]));
      const denied = await attempt(
        runtime,
        script("flurry fork 1; echo $?", { forks: { users: [1000] } }),
        {},
      );
      expect(denied).toMatchObject({ stdout: "3\n", stderr: expect.stringContaining("FORK_DENIED") });
      expect(runtime.vms.list(undefined)).toEqual([]);
    },
    TEST_MS,
  );
});
