import { expect, test } from "bun:test";
import { join } from "node:path";
import { rejection } from "../support/agent-peer.ts";
import { ScriptedCalls } from "../support/scripted-calls.ts";
import { temporaryDirectory } from "../support/vm.ts";
import { WorkerHostUnderTest } from "../support/worker-process.ts";

const FORKED = `forked vm-7 7 ${"5a".repeat(32)}`;

const source = `
import { clone, FlurryError, fork } from "flurry:vm";
export default {
  async task(input) {
    if (input.clone) {
      const id = await clone(input.clone);
      if (id === 2) throw new Error("no luck");
      return { id, is: "clone" };
    }
    if (input === "hangs") return await new Promise(() => {});
    const same = (await import("flurry:vm")).fork === fork;
    const before = fetch("http://before.test/").catch(({ message }) => message);
    try {
      const forked = await fork(2);
      const after = await fetch("http://after.test/").catch(({ message }) => message);
      return { ...forked, same, fetched: [await before, after], random: Math.random() };
    } catch (error) {
      return { code: error.code, isOwn: error instanceof FlurryError };
    }
  },
};
`;

test("a worker whose task awaits fork() can be forked in the middle of it, and by nobody else", async () => {
  using directory = temporaryDirectory();
  const socket = join(directory.path, "vm.sock");
  const frozen = Promise.withResolvers<void>();
  await using calls = await ScriptedCalls.listen(socket, {
    answer: async () => {
      await frozen.promise;
      return ["ok 0 t1 2\n"];
    },
  });
  await using host = await WorkerHostUnderTest.start({ FLURRY_VM_SOCKET: socket }, true);
  await using client = await host.client({ outbound: () => Promise.withResolvers<never>().promise });
  await client.load({ entry: await host.bundle(source), name: "test" });
  await client.forked({ vm: { id: "vm-1", index: 0, generation: 1 }, env: {}, secrets: {} });
  const { hook } = host;

  const control = new AbortController();
  const hanging = rejection(client.task("hangs", { signal: control.signal }));
  await client.ping();
  hook.say("prepare");
  expect(await hook.next()).toContain("busy ");
  control.abort();
  await hanging;

  const task = client.task("forks");
  await calls.heard(1);
  hook.say("prepare");
  expect(await hook.next()).toBe("ready");
  hook.say(FORKED);
  expect(await hook.next()).toMatch(/^done /);
  hook.say("go");
  frozen.resolve();
  expect(await task).toEqual({
    ...{ id: 0, ticket: { name: "t1", granted: 2 }, granted: 2, same: true },
    fetched: [
      expect.stringContaining("before this VM was forked"),
      expect.stringContaining("has no network"),
    ],
    random: expect.any(Number),
  });
  expect(calls.requests.map(({ line }) => line)).toEqual(["fork 2"]);
});

test("outside of a VM a worker's calls have no host, and are errors like all others", async () => {
  await using host = await WorkerHostUnderTest.start({ FLURRY_VM_SOCKET: "/none" });
  await using client = await host.client();
  await client.load({ entry: await host.bundle(source), name: "test" });
  expect(await client.task("forks")).toEqual({ code: "NO_HOST", isOwn: true });
});

test("a task that ends in a child exits with its value, or with why it has none; in the parent it is told as ever", async () => {
  using directory = temporaryDirectory();
  const socket = join(directory.path, "vm.sock");
  await using calls = await ScriptedCalls.listen(socket, {
    answer: ({ line }) => (line.startsWith("clone") ? [`ok ${line.at(-1)} 2\n`] : undefined),
  });
  for (const [id, status, result] of [
    [0, undefined, undefined],
    [1, 0, '{"id":1,"is":"clone"}'],
    [2, 1, "no luck"],
  ] as const) {
    await using host = await WorkerHostUnderTest.start({ FLURRY_VM_SOCKET: socket });
    await using client = await host.client();
    await client.load({ entry: await host.bundle(source), name: "test" });
    const task = client.task({ clone: `t${id}` });
    if (status === undefined) {
      expect(await task).toEqual({ id, is: "clone" });
      expect(calls.requests.length).toBe(1);
      continue;
    }
    const ended = rejection(task);
    await calls.heard(1 + 2 * id);
    const { line, body } = calls.requests.at(-1)!;
    expect([line, body.toString()]).toEqual([`exit ${status} ${result.length}`, result]);
    await client[Symbol.asyncDispose]();
    await ended;
  }
});
