import { describe, expect, test } from "bun:test";
import { MAX_AHEAD_MS } from "../../runtime/workers/scaling/ahead-rule.ts";
import type { Isolation } from "../../runtime/workers/scaling/isolation.ts";
import { forkFailed } from "../support/workers-scaling-host.ts";
import { openRouter } from "../support/workers-scaling-requests.ts";

type Options = Parameters<typeof openRouter>[1];

/** A router whose first request has been answered, and which has forked a child for the next one. */
async function openAhead(isolation: Isolation, options: Options = {}) {
  const bench = openRouter(isolation, { ahead: 2, ...options });
  const first = bench.ask({ session: "first" });
  await bench.forked();
  first.answer();
  await bench.forked();
  expect(bench.router.stats()).toMatchObject({ forks: 2, forksAhead: 1, children: { spare: 1, forking: 0 } });
  return { ...bench, first };
}

describe("RequestRouter with children forked ahead", () => {
  test("forks one when a request has been answered, not when it comes, and gives it to the next one", async () => {
    const { ask, forked, time, router, host } = openRouter({ mode: "request" }, { ahead: 2 });
    const first = ask();
    await forked();
    await time.advance(500);
    expect(host.forkedAt).toHaveLength(1);
    first.answer();
    await forked();
    expect(host.forkedAt).toHaveLength(2);
    const second = ask();
    await time.advance(0);
    expect(second.child).toBe(host.children[1]!);
    await time.advance(500);
    expect(host.forkedAt).toHaveLength(2);
    second.answer();
    await forked();
    expect(host.forkedAt).toHaveLength(3);
    // Each has had one request, and no more.
    expect(host.children.map(({ disposals }) => disposals)).toEqual([1, 1, 0]);
    expect(router.stats()).toMatchObject({ usedAhead: 1, unused: 0, waits: { count: 2, sumMs: 50 } });
  });

  test("does so as soon as the answer has begun, once for each child", async () => {
    const { ask, forked, router } = openRouter({ mode: "request" }, { ahead: 2 });
    const stream = ask();
    await forked();
    stream.begin();
    stream.begin();
    await forked();
    expect(router.stats()).toMatchObject({ inFlight: 1, forksAhead: 1 });
    stream.answer();
    await forked();
    expect(router.stats()).toMatchObject({ inFlight: 0, forksAhead: 1 });
  });

  test("forks none for requests that failed, nor where there is no room that nobody waits for", async () => {
    const bench = openRouter({ mode: "request" }, { ahead: 2, places: 2 });
    const requests = bench.asks(2);
    await bench.forked();
    requests[0]!.fail(new Error("It went wrong"));
    await bench.forked();
    expect(bench.router.stats().forksAhead).toBe(0);
    const third = bench.ask();
    await bench.forked();
    requests[1]!.begin();
    await bench.forked();
    expect(bench.router.stats().forksAhead).toBe(0);
    third.abort();
    await bench.forked();
    expect(bench.router.stats().forksAhead).toBe(1);
  });

  test("has whoever comes meanwhile wait for the one that is on its way", async () => {
    const { ask, time, host, forked } = openRouter({ mode: "request" }, { ahead: 1 });
    const first = ask();
    await forked();
    first.answer();
    await time.advance(40);
    const second = ask();
    await time.advance(11);
    expect([second.child, host.forkedAt.length]).toEqual([host.children[1], 2]);
  });

  test("gives them to new sessions, and each to one of them", async () => {
    const { ask, forked, time, host, router } = await openAhead({ mode: "session" });
    const [a, again, old] = ["a", "a", "first"].map((session) => ask({ session }));
    await time.advance(0);
    expect([a!.child, again!.child, old!.child]).toEqual([1, 1, 0].map((n) => host.children[n]));
    a!.answer();
    await forked();
    expect(router.stats()).toMatchObject({ usedAhead: 1, forksAhead: 2, children: { spare: 1 } });
  });

  test("leaves a session in one child although another one was being forked for it", async () => {
    const { ask, time, host, router } = openRouter({ mode: "session", concurrency: 1 }, { ahead: 1 });
    const first = ask({ session: "first" });
    await time.advance(50);
    first.answer();
    await time.advance(31);
    const impatient = ask({ session: "impatient" });
    const [one, two] = [ask({ session: "a" }), ask({ session: "a" })];
    await time.advance(10);
    expect([host.forkedAt.length, router.stats().queued]).toEqual([3, 3]);
    // What it has counted on is free now, and comes before the one that was begun for session a.
    impatient.abort();
    await time.advance(10);
    expect([one.child, two.child]).toEqual([host.children[1], undefined]);
    await time.advance(50);
    expect(router.stats()).toMatchObject({ queued: 1, children: { busy: 1, idle: 1, spare: 1 } });
    one.answer();
    await time.advance(0);
    expect(two.child).toBe(one.child!);
  });

  test("gives them to requests that find all shared children full, and counts idle ones as ready", async () => {
    const { ask, time, router, host } = openRouter({ mode: "shared", concurrency: 1 }, { ahead: 1 });
    const first = ask();
    await time.advance(50);
    first.begin();
    await time.advance(51);
    expect(router.stats().children).toMatchObject({ busy: 1, spare: 1 });
    const second = ask();
    await time.advance(0);
    expect(second.child).toBe(host.children[1]!);
    first.answer();
    await time.advance(0);
    second.begin();
    await time.advance(60);
    expect(router.stats()).toMatchObject({ forks: 2, children: { idle: 1, busy: 1, spare: 0, forking: 0 } });
  });

  test("ends one that nobody has used a minute after its fork, and then has none", async () => {
    const { host, router, time } = await openAhead({ mode: "request" });
    await time.advance(MAX_AHEAD_MS - (time.now() - host.forkedAt[1]!) - 1);
    expect(router.stats().children.spare).toBe(1);
    await time.advance(1);
    expect(router.stats()).toMatchObject({ children: { spare: 0, ending: 1 }, unused: 1 });
    await time.advance(600_000);
    expect([host.forkedAt.length, host.tickets, time.timers]).toEqual([2, 0, 0]);
  });

  test("replaces one that dies, or whose fork fails, after the next answer only", async () => {
    const failure = (n: number) => (n === 3 ? forkFailed() : undefined);
    const { ask, host, router, time, forked } = await openAhead({ mode: "request" }, { failure });
    host.children[1]!.die();
    await time.advance(5000);
    expect(router.stats()).toMatchObject({ forks: 2, unused: 1, retired: { died: 1 } });
    for (const forks of [4, 6]) {
      const next = ask();
      await forked();
      next.answer();
      await time.advance(5000);
      expect(router.stats()).toMatchObject({ forks, failedForks: 1 });
    }
    expect(router.stats().children).toMatchObject({ spare: 1 });
  });

  test("has those give way first to others who wait for room, also where sessions keep their children", async () => {
    const { host, router, time } = await openAhead({ mode: "session" });
    host.roomWanted = true;
    expect(router.giveWay({ unusedOnly: true })).toBe(true);
    expect(router.stats()).toMatchObject({ children: { idle: 1, spare: 0, ending: 1 }, unused: 1 });
    await time.advance(1000);
    expect(router.giveWay()).toBe(false);
    // Nobody else gets it back for it, until it has answered again.
    host.roomWanted = false;
    await time.advance(1000);
    expect(router.stats()).toMatchObject({ forks: 2, children: { idle: 1 } });
  });

  test("ends them, and what is on its way to be one, when it is told that none is needed any more", async () => {
    const { ask, asks, forked, router, host, time } = await openAhead({ mode: "request" });
    const requests = asks(3);
    await forked();
    for (const request of requests) request.answer();
    await time.advance(1);
    expect(router.stats().children.forking).toBeGreaterThan(0);
    router.stopAhead();
    await forked();
    expect([router.stats().children.spare, router.stats().children.forking]).toEqual([0, 0]);
    const last = ask();
    await forked();
    last.answer();
    await time.advance(1000);
    expect([last.outcome, host.tickets]).toEqual(["answered", 0]);
  });
});
