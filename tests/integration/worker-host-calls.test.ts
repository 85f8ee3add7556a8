import { expect, test } from "bun:test";
import { join } from "node:path";
import { rejection } from "../support/agent-peer.ts";
import { ScriptedCalls } from "../support/scripted-calls.ts";
import { temporaryDirectory } from "../support/vm.ts";
import { WorkerHostUnderTest } from "../support/worker-process.ts";

const FORKED = `forked vm-7 7 ${"5a".repeat(32)}`;

const source = `
import { FlurryError, fork } from "flurry:vm";
export default {
  async task(input) {
    if (input === "hangs") return await new Promise(() => {});
    const same = (await import("flurry:vm")).fork === fork;
    try {
      return { ...(await fork(2)), same, random: Math.random() };
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
      return ["ok 2 t1 2\n"];
    },
  });
  await using host = await WorkerHostUnderTest.start({ FLURRY_VM_SOCKET: socket }, true);
  await using client = await host.client();
  await client.load({ entry: await host.bundle(source), name: "test" });
  const { hook } = host;

  const control = new AbortController();
  const hanging = rejection(client.task("hangs", { signal: control.signal }));
  await client.ping();
  hook.say("prepare");
  expect(await hook.next()).toContain("busy ");
  control.abort();
  await hanging;

  const task = client.task("forks");
  await calls.asked.promise;
  hook.say("prepare");
  expect(await hook.next()).toBe("ready");
  hook.say(FORKED);
  expect(await hook.next()).toMatch(/^done /);
  hook.say("go");
  frozen.resolve();
  expect(await task).toEqual({
    ...{ id: 2, ticket: { name: "t1", granted: 2 }, granted: 2, same: true },
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
