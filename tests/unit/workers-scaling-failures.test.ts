import { describe, expect, test } from "bun:test";
import { FlurryError } from "../../errors/errors.ts";
import { Attempt } from "../../runtime/workers/scaling/attempt.ts";
import type { RequestRouterOptions } from "../../runtime/workers/scaling/request-router.ts";
import { ServingChild } from "../../runtime/workers/scaling/serving-child.ts";
import { forkFailed, SimulatedChild } from "../support/workers-scaling-host.ts";
import { close, openRouter } from "../support/workers-scaling-requests.ts";

const shared = { mode: "shared", concurrency: 2 } as const;

describe("RequestRouter, when requests wait", () => {
  test("turns requests away when too many wait, with a time after which to try again", async () => {
    const { asks, ask, forked, time, router } = openRouter(shared, { maxChildren: 1, maxQueue: 4 });
    const first = asks(2);
    await forked();
    await time.advance(6000);
    for (const request of first) request.answer();
    await time.advance(0);
    const requests = asks(6);
    const refused = ask();
    await time.advance(0);
    expect(requests.map(({ child }) => child !== undefined)).toEqual([
      true,
      true,
      false,
      false,
      false,
      false,
    ]);
    expect(refused.error).toMatchObject({
      code: "QUEUE_FULL",
      retryAfterSeconds: 12,
      hint: "try again in 12 s",
    });
    expect(router.stats()).toMatchObject({ refused: 1, queued: 4 });
  });

  test("gives a free place to its session although the queue is full", async () => {
    const { ask, asks, forked, time } = openRouter({ mode: "session" }, { maxChildren: 1, maxQueue: 2 });
    ask({ session: "a" });
    await forked();
    const waiting = asks(2, { session: "b" });
    const welcome = ask({ session: "a" });
    const refused = ask({ session: "b" });
    await time.advance(0);
    expect(welcome.child?.id).toBe("vm-0");
    expect(refused.outcome).toBe("QUEUE_FULL");
    expect(waiting.map(({ outcome }) => outcome)).toEqual([undefined, undefined]);
  });

  test("lets none wait longer than queueMs", async () => {
    const { asks, forked, time, router } = openRouter(shared, { maxChildren: 1, queueMs: 500 });
    const requests = asks(3);
    await forked();
    await time.advance(449);
    expect(requests[2]!.outcome).toBeUndefined();
    await time.advance(1);
    expect(requests[2]!.error).toMatchObject({ code: "QUEUE_FULL", retryAfterSeconds: 1 });
    expect(router.stats()).toMatchObject({ expired: 1, queued: 0, inFlight: 2 });
  });

  test("serves them in the order in which they came", async () => {
    const { asks, forked, time } = openRouter({ mode: "request" }, { maxChildren: 1 });
    const requests = asks(4);
    for (const request of requests) {
      await forked();
      expect(requests.filter(({ working }) => working)).toEqual([request]);
      request.answer();
      await time.advance(5);
    }
  });

  test("lets those who are aborted leave at once, and takes back what was only asked for them", async () => {
    const { host, ask, asks, forked, time, router } = openRouter({ mode: "request" }, { places: 1 });
    const holder = ask();
    await forked();
    const impatient = asks(3);
    await time.advance(0);
    expect(router.stats().children.admitting).toBe(3);
    for (const request of impatient) request.abort();
    await time.advance(0);
    expect(impatient.map(({ outcomes }) => outcomes)).toEqual([["ABORTED"], ["ABORTED"], ["ABORTED"]]);
    expect(router.stats()).toMatchObject({ queued: 0, children: { admitting: 0 } });
    holder.answer();
    await time.advance(1000);
    expect(host.forkedAt).toHaveLength(1);
    expect(host.tickets).toBe(0);
  });
});

describe("RequestRouter, when a caller leaves in just the wrong moment", () => {
  test("gives up a place that was given in that moment", async () => {
    for (let turns = 0; turns < 20; turns++) {
      const options = { mode: "shared", concurrency: 1 } as const;
      const { ask, forked, time, router } = openRouter(options, { maxChildren: 1 });
      const first = ask();
      await forked();
      const second = ask();
      first.answer();
      for (let n = 0; n < turns; n++) await Promise.resolve();
      second.abort();
      await time.advance(0);
      expect(second.outcomes).toEqual(["ABORTED"]);
      expect(router.stats()).toMatchObject({ inFlight: 0, queued: 0, children: { idle: 1 } });
    }
  });

  test("has whoever comes then begin anew, and not count on what is being called off", async () => {
    const { host, ask, forked, time } = openRouter({ mode: "request" }, { attempts: 1, places: 1 });
    const holder = ask();
    await forked();
    const impatient = ask();
    await time.advance(0);
    impatient.abort();
    const next = ask();
    await time.advance(0);
    holder.answer();
    await time.advance(100);
    expect(next.child?.id).toBe("vm-1");
    expect(host.forkedAt).toHaveLength(2);
  });

  test("forks nothing with a ticket that comes too late, and gives it back", async () => {
    const bench = openRouter({ mode: "request" });
    const late = Promise.withResolvers<Disposable>();
    const ports = {
      fork: bench.host.fork.bind(bench.host),
      admit: () => late.promise,
      admitAhead: () => undefined,
    };
    const { ask, router, time } = openRouter({ mode: "request" }, { ports });
    const request = ask();
    await time.advance(0);
    request.abort();
    let returned = 0;
    late.resolve({ [Symbol.dispose]: () => void returned++ });
    await time.advance(0);
    expect([returned, bench.host.forkedAt.length, router.stats().forks]).toEqual([1, 0, 0]);
    expect(router.stats().failedForks).toBe(0);
  });
});

test("Attempt does no work when it was cut before", async () => {
  const ticket = { [Symbol.dispose]: () => undefined };
  const child = new SimulatedChild("vm-0", 0, async () => undefined);
  const on = new ServingChild<SimulatedChild>(child, ticket, {
    key: "",
    isAhead: false,
    forkedAt: 0,
    readyAt: 0,
  });
  const attempt = new Attempt(on, 0);
  attempt.cut(new FlurryError("CHILD_DIED", "gone"));
  const ends: unknown[] = [];
  const work = () => Promise.reject(new Error("It was begun"));
  const events = {
    onAnswered: () => undefined,
    onEnd: (failure?: { error: unknown }) => void ends.push(failure?.error),
  };
  await expect(attempt.run(work, events)).rejects.toThrow("gone");
  expect(ends).toMatchObject([{ code: "CHILD_DIED" }]);
});

describe("RequestRouter, when forks fail", () => {
  test("tries again with another child, and nobody hears of it", async () => {
    const failure = (n: number) => (n < 2 ? forkFailed() : undefined);
    const { host, ask, time, router } = openRouter({ mode: "request" }, { failure });
    const request = ask();
    await time.advance(150);
    expect(request.child?.id).toBe("vm-2");
    expect(router.stats()).toMatchObject({ forks: 3, failedForks: 2 });
    expect(host.tickets).toBe(1);
  });

  test("gives the error to those whom too many failed, and forks no more for them", async () => {
    const { host, asks, time } = openRouter(shared, { failure: forkFailed });
    const requests = asks(4);
    await time.advance(1000);
    expect(requests.map(({ outcomes }) => outcomes)).toEqual(requests.map(() => ["FORK_FAILED"]));
    expect(host.forkedAt).toHaveLength(6);
    expect(host.tickets).toBe(0);
  });

  test("does not charge others with the failures of one start", async () => {
    const failure = (n: number) => (n < 10 ? forkFailed() : undefined);
    const { asks, time } = openRouter({ mode: "request" }, { failure });
    const requests = asks(10);
    await time.advance(1000);
    expect(requests.every(({ child }) => child)).toBe(true);
  });

  test("tells at once that there will be no room", async () => {
    const { host, asks, time } = openRouter(shared, { places: 0 });
    const requests = asks(3);
    await time.advance(0);
    expect(requests.map(({ outcomes }) => outcomes)).toEqual(requests.map(() => ["ADMISSION_REFUSED"]));
    expect(host.forkedAt).toEqual([]);
  });
});

describe("RequestRouter, when children die", () => {
  test("tells each request in it, and gives none of them to another child if something was sent", async () => {
    const { host, asks, forked, time, router } = openRouter(shared);
    const requests = asks(2);
    await forked();
    host.children[0]!.die();
    await forked();
    expect(requests.map(({ outcomes }) => outcomes)).toEqual([["CHILD_DIED"], ["CHILD_DIED"]]);
    expect(requests[0]!.error).toMatchObject({ message: "vm-0 died with the request in it" });
    expect(requests.every(({ working }) => !working)).toBe(true);
    expect(host.children).toHaveLength(1);
    expect(host.children[0]!.disposals).toBe(1);
    expect(router.stats().retired).toMatchObject({ died: 1, served: 0 });
    await time.advance(10);
    expect(host.tickets).toBe(0);
  });

  test("gives a request of which nothing was sent to another child, before all who came later", async () => {
    const { host, ask, asks, forked, time, router } = openRouter(shared, { maxChildren: 1 });
    const first = ask({ starts: false });
    ask();
    await forked();
    const later = asks(2);
    await time.advance(0);
    host.children[0]!.die();
    await time.advance(5);
    await forked();
    expect(first.given.map(({ id }) => id)).toEqual(["vm-0", "vm-1"]);
    expect(later.map(({ working }) => working)).toEqual([true, false]);
    expect(router.stats().rerouted).toBe(1);
    first.answer();
    await time.advance(0);
    expect(first.outcomes).toEqual(["answered"]);
  });

  test("lets nothing be sent any more when the child is gone, so that no request is served twice", async () => {
    const { host, ask, forked, time } = openRouter({ mode: "request" });
    const request = ask({ starts: false, heeds: false });
    await forked();
    const { scope } = request;
    host.children[0]!.die();
    await time.advance(0);
    expect(() => scope!.started()).toThrow("vm-0 died");
    await forked();
    expect(request.child?.id).toBe("vm-1");
  });

  test("gives up on a request whose children die again and again", async () => {
    const { host, ask, forked } = openRouter({ mode: "request" }, { attempts: 2 });
    const request = ask({ starts: false });
    await forked();
    host.children[0]!.die();
    await forked();
    host.children[1]!.die();
    await forked();
    expect(request.outcomes).toEqual(["CHILD_DIED"]);
    expect(host.children).toHaveLength(2);
  });

  test("takes a closed channel for a death that others have not heard of yet", async () => {
    const { host, ask, forked, time } = openRouter(shared);
    const [first, second] = [ask(), ask({ starts: false })];
    await forked();
    first.fail(new FlurryError("AGENT_CLOSED", "gone"));
    await time.advance(5);
    expect(first.error).toMatchObject({ code: "CHILD_DIED", cause: { code: "AGENT_CLOSED" } });
    expect(host.children[0]!.disposals).toBe(1);
    await forked();
    expect(second.child?.id).toBe("vm-1");
  });

  test("forgets one that dies without requests, and replaces it when there is need", async () => {
    const { host, ask, forked, time, router } = openRouter(shared);
    const first = ask();
    await forked();
    first.answer();
    await time.advance(0);
    host.children[0]!.die();
    await time.advance(1000);
    expect(router.stats()).toMatchObject({ forks: 1, retired: { died: 1 }, children: { idle: 0 } });
    const second = ask();
    await forked();
    expect(second.child?.id).toBe("vm-1");
  });
});

describe("RequestRouter, when it is disposed", () => {
  test("settles all requests, and ends all children and forks", async () => {
    const { host, ask, asks, forked, time, router } = openRouter({ mode: "request" }, { places: 3 });
    const running = asks(2, { heeds: false });
    await forked();
    const waiting = asks(2);
    await time.advance(1);
    expect(router.stats().children).toMatchObject({ busy: 2, forking: 1, admitting: 1 });
    await close(router, time);
    const all = [...running, ...waiting];
    expect(all.map(({ outcomes }) => outcomes)).toEqual(all.map(() => ["SHUTTING_DOWN"]));
    expect(host.children.map(({ disposals }) => disposals)).toEqual([1, 1]);
    expect(host.tickets).toBe(0);
    expect(router.stats().retired.closed).toBe(2);
    await time.advance(100);
    expect(time.timers).toBe(0);
    const late = ask();
    await time.advance(0);
    expect(late.outcome).toBe("SHUTTING_DOWN");
  });

  test("ends a child that becomes ready although its fork was aborted", async () => {
    const bench = openRouter({ mode: "request" });
    const ports = { admit: bench.host.admit.bind(bench.host), admitAhead: () => undefined };
    const deaf = new AbortController().signal;
    const fork = (_: AbortSignal, isAhead?: boolean) => bench.host.fork(deaf, isAhead);
    const { ask, router, time } = openRouter(
      { mode: "request" },
      { ports: { ...ports, fork }, clock: bench.time, after: bench.time.after },
    );
    ask();
    await time.advance(0);
    await close(router, bench.time);
    expect(bench.host.children.map(({ disposals }) => disposals)).toEqual([1]);
    expect(bench.host.tickets).toBe(0);
  });

  test("tells of a child that could not be ended, which keeps nobody from its place", async () => {
    const bench = openRouter({ mode: "request" }, { endMs: 5 });
    const fork = async (signal: AbortSignal, isAhead?: boolean) => {
      const child = await bench.host.fork(signal, isAhead);
      child[Symbol.asyncDispose] = () => Promise.reject(new Error("It does not go"));
      return child;
    };
    const ports = { admit: bench.host.admit.bind(bench.host), admitAhead: () => undefined, fork };
    const options: Partial<RequestRouterOptions<SimulatedChild>> = {
      ...{ ports, clock: bench.time, after: bench.time.after, maxChildren: 1 },
    };
    const { asks, router } = openRouter({ mode: "request" }, options);
    const requests = asks(2);
    for (const request of requests) {
      await bench.forked();
      request.answer();
    }
    await bench.forked();
    expect(requests.map(({ outcome }) => outcome)).toEqual(["answered", "answered"]);
    await expect(close(router, bench.time)).rejects.toThrow("It does not go");
  });
});
