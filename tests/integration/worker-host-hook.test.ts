import { expect, test } from "bun:test";
import type { WorkerClient } from "../../guest-agent/protocol/worker/mod.ts";
import { rejection } from "../support/agent-peer.ts";
import { textOf, WorkerHostUnderTest } from "../support/worker-process.ts";

const FORKED = `forked vm-7 7 ${"5a".repeat(32)}`;
/** Milliseconds for which the agent lets it wait: a timer of 2 ms would come many times. */
const HELD_MS = 60;

const source = `
import { randomBytes, randomFillSync } from "node:crypto";
const ticks = [];
setInterval(() => ticks.push(performance.timeOrigin + performance.now()), 2);
const pools = {
  values: crypto.getRandomValues(new Uint8Array(256)),
  part: Buffer.alloc(1024),
  bytes: randomBytes(512),
  key: randomBytes(32),
  text: randomFillSync(Buffer.alloc(200)).fill("x", 50, 60),
};
crypto.getRandomValues(pools.part.subarray(512, 768));
const first = structuredClone(pools);
const order = [];
globalThis[Symbol.for("flurry.onFork")](async (ctx) => { await Bun.sleep(1); order.push("library " + ctx.vm.id); });
globalThis[Symbol.for("flurry.onFork")](() => order.push("another"));
const isSame = (name, start, end) =>
  Buffer.compare(pools[name].subarray(start, end), first[name].subarray(start, end)) === 0;
export default {
  onFork() { order.push("module"); },
  fetch(request) {
    if (request.url.endsWith("/thread")) globalThis.thread = new Worker("data:text/javascript,setInterval(() => {}, 999)");
    if (request.url.endsWith("/wait")) return new Promise(() => {});
    const same = { values: isSame("values"), part: isSame("part", 512, 768), bytes: isSame("bytes"),
      before: isSame("part", 0, 512), behind: isSame("part", 768), key: isSame("key"), text: isSame("text") };
    return Response.json({ ticks, order, same, hook: process.env.FLURRY_FORK_FD ?? null });
  },
};
`;

interface Seen {
  ticks: number[];
  order: string[];
  same: Record<string, boolean>;
  hook: string | null;
}

async function running(): Promise<{ host: WorkerHostUnderTest; client: WorkerClient } & AsyncDisposable> {
  await using stack = new AsyncDisposableStack();
  const host = stack.use(await WorkerHostUnderTest.start({}, true));
  const client = stack.use(await host.client());
  await client.load({ entry: await host.bundle(source), name: "test" });
  const kept = stack.move();
  return { host, client, [Symbol.asyncDispose]: () => kept.disposeAsync() };
}

async function seenBy(client: WorkerClient, path = "/"): Promise<Seen> {
  return JSON.parse(await textOf(await client.fetch({ method: "GET", url: `http://w${path}` })));
}

/** Ticks of the worker between two moments. */
function ticksIn({ ticks }: Seen, from: number, to: number): number {
  return ticks.filter((at) => at > from && at < to).length;
}

const now = () => performance.timeOrigin + performance.now();

test("from `prepare` to `go` nothing of the worker runs, and its pools are filled anew meanwhile", async () => {
  await using worker = await running();
  const { hook } = worker.host;
  const evidence = new Set<string>();
  for (let fork = 0; fork < 3; fork++) {
    hook.say("prepare");
    expect(await hook.next()).toBe("ready");
    const frozen = now();
    await Bun.sleep(HELD_MS);
    hook.say(FORKED);
    const done = await hook.next();
    expect(done).toMatch(/^done [0-9a-f-]{36} \d+$/);
    evidence.add(done!);
    await Bun.sleep(HELD_MS);
    const released = now();
    hook.say("go");
    const seen = await seenBy(worker.client);
    expect(ticksIn(seen, frozen, released)).toBe(0);
    expect(ticksIn(seen, 0, frozen)).toBeGreaterThan(0);
    expect(seen.hook).toBeNull();
    // What is not all as it was filled is no pool any more.
    expect(seen.same).toEqual({
      ...{ values: false, part: false, bytes: false },
      ...{ before: true, behind: true, key: true, text: true },
    });
  }
  expect(evidence.size).toBe(3);
});

test("a parent that goes on keeps what it had", async () => {
  await using worker = await running();
  const { hook } = worker.host;
  hook.say("prepare");
  expect(await hook.next()).toBe("ready");
  hook.say("resume");
  const { same } = await seenBy(worker.client);
  expect(Object.values(same)).toEqual(Object.keys(same).map(() => true));
});

test("it is busy while a request or a thread runs, says so, and can be asked again", async () => {
  await using worker = await running();
  const { hook } = worker.host;
  const control = new AbortController();
  const waiting = rejection(
    worker.client.fetch({ method: "GET", url: "http://w/wait" }, { signal: control.signal }),
  );
  await worker.client.ping();
  hook.say("prepare");
  expect(await hook.next()).toBe("busy 1 requests are running");
  control.abort();
  await waiting;
  await using next = await running();
  await seenBy(next.client, "/thread");
  next.host.hook.say("prepare");
  expect(await next.host.hook.next()).toContain("start them in onFork()");
  // It was only asked.
  await seenBy(next.client);
});

test("what libraries gave for forks is called in order, before the module's own onFork()", async () => {
  await using worker = await running();
  await worker.client.forked({ vm: { id: "vm-7", index: 7, generation: 1 }, env: {}, secrets: {} });
  const { order } = await seenBy(worker.client);
  expect(order).toEqual(["library vm-7", "another", "module"]);
});

test("an agent that goes, or makes no sense, ends the worker host: nobody would renew it", async () => {
  for (const act of [
    (host: WorkerHostUnderTest) => host.hook[Symbol.dispose](),
    (host: WorkerHostUnderTest) => host.hook.say(FORKED),
    (host: WorkerHostUnderTest) => host.hook.say("x".repeat(600)),
  ]) {
    await using host = await WorkerHostUnderTest.start({}, true);
    act(host);
    await host.exited;
    expect(host.process.exitCode).toBe(1);
    expect(host.stderr).toContain("Cannot take part in forks");
  }
});
