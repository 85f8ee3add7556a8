import { describe, expect, test } from "bun:test";
import { FlurryError } from "../../errors/errors.ts";
import { close, openRouter } from "../support/workers-scaling-requests.ts";

describe("RequestRouter in request mode", () => {
  test("forks a fresh child for each request, and discards it after the answer", async () => {
    const { host, asks, forked, time, router } = openRouter({ mode: "request" });
    const requests = asks(3);
    await forked();
    expect(new Set(requests.map(({ child }) => child)).size).toBe(3);
    expect(router.stats()).toMatchObject({ inFlight: 3, queued: 0, children: { busy: 3, draining: 0 } });
    for (const request of requests) request.answer();
    await time.advance(0);
    expect(requests.map(({ outcome }) => outcome)).toEqual(["answered", "answered", "answered"]);
    expect(router.stats().children).toMatchObject({ busy: 0, ending: 3 });
    await time.advance(5);
    expect(host.children.map(({ disposals }) => disposals)).toEqual([1, 1, 1]);
    expect(router.stats()).toMatchObject({ forks: 3, retired: { served: 3 }, children: { ending: 0 } });
    expect(host.tickets).toBe(0);
  });

  test("gives the child of somebody who has left to the next one, or retires it after idleMs", async () => {
    const { host, ask, forked, time, router } = openRouter({ mode: "request", idleMs: 300 });
    const impatient = [ask(), ask()];
    await time.advance(0);
    for (const request of impatient) request.abort();
    await time.advance(20);
    const next = ask();
    await time.advance(30);
    expect(next.child?.id).toBe("vm-0");
    expect(host.forkedAt).toHaveLength(2);
    await forked();
    expect(router.stats().children).toMatchObject({ spare: 1, busy: 1 });
    await time.advance(249);
    expect(router.stats().children.spare).toBe(1);
    await time.advance(1);
    expect(router.stats()).toMatchObject({ children: { spare: 0, busy: 1 }, retired: { idle: 1 } });
    expect(router.stats().unused).toBe(1);
  });

  test("ends the child at once when the caller leaves, whatever the work does", async () => {
    const { host, ask, forked, router, time } = openRouter({ mode: "request" });
    const request = ask({ heeds: false });
    await forked();
    request.abort();
    await time.advance(5);
    expect(request.outcomes).toEqual(["ABORTED"]);
    expect(request.scope?.signal.aborted).toBe(true);
    expect(host.tickets).toBe(0);
    expect(router.stats().retired.served).toBe(1);
  });

  test("has no more children than it may, counting those that end", async () => {
    const { host, asks, forked, time } = openRouter({ mode: "request" }, { maxChildren: 2 });
    const requests = asks(3);
    await forked();
    requests[0]!.answer();
    await time.advance(4);
    expect(host.forkedAt).toHaveLength(2);
    await time.advance(1);
    expect(host.forkedAt).toHaveLength(3);
    expect(host.mostChildren).toBe(2);
  });
});

describe("RequestRouter in session mode", () => {
  test("gives all requests of a session to one child, and holds up no other session", async () => {
    const { host, ask, asks, forked, time, router } = openRouter({ mode: "session", concurrency: 2 });
    const a = asks(3, { session: "a" });
    const b = ask({ session: "b" });
    await forked();
    expect(host.forkedAt).toHaveLength(2);
    expect(a.map(({ child }) => child?.id)).toEqual(["vm-0", "vm-0", undefined]);
    expect(b.child?.id).toBe("vm-1");
    expect(router.stats().queued).toBe(1);
    a[0]!.answer();
    await time.advance(0);
    expect(a[2]!.child?.id).toBe("vm-0");
  });

  test("retires a child without requests after idleMs, counted from its last one", async () => {
    const { ask, forked, time, router } = openRouter({ mode: "session", idleMs: 1000 });
    const first = ask({ session: "a" });
    await forked();
    first.answer();
    await time.advance(900);
    const second = ask({ session: "a" });
    await time.advance(500);
    expect(second.child).toBe(first.child!);
    second.answer();
    await time.advance(999);
    expect(router.stats().children.idle).toBe(1);
    await time.advance(1);
    expect(router.stats()).toMatchObject({ children: { idle: 0, ending: 1 }, retired: { idle: 1 } });
    const third = ask({ session: "a" });
    await forked();
    expect(third.child).not.toBe(first.child!);
  });

  test("goes on in a fresh child when the first one is too old, which finishes what it has", async () => {
    const { host, ask, forked, time, router } = openRouter({ mode: "session", maxAgeMs: 1000 });
    const old = ask({ session: "a" });
    await forked();
    await time.advance(1000);
    expect(router.stats().children).toMatchObject({ draining: 1, busy: 0 });
    const young = ask({ session: "a" });
    await forked();
    expect(young.child?.id).toBe("vm-1");
    expect(old.outcome).toBeUndefined();
    old.answer();
    await time.advance(5);
    expect([old.outcome, host.children[0]!.disposals, young.outcome]).toEqual(["answered", 1, undefined]);
    expect(router.stats().retired.age).toBe(1);
  });

  test("needs a key", async () => {
    const { ask, time } = openRouter({ mode: "session" });
    const request = ask();
    await time.advance(0);
    expect(request.outcome).toBe("BAD_ARGUMENT");
  });

  test("lets a session wait that needs a child where there are as many as there may be", async () => {
    const { ask, forked, router } = openRouter({ mode: "session", idleMs: 300 }, { maxChildren: 1 });
    const a = ask({ session: "a" });
    const b = ask({ session: "b" });
    await forked();
    a.answer();
    await forked();
    expect([b.child, router.stats().queued]).toEqual([undefined, 1]);
    for (let n = 0; n < 7; n++) await forked();
    expect(b.child?.id).toBe("vm-1");
  });
});

describe("RequestRouter in shared mode", () => {
  test("has as many children as concurrent requests need, and gives requests to the least loaded", async () => {
    const { host, asks, forked, time } = openRouter({ mode: "shared", concurrency: 3 });
    const requests = asks(7);
    await forked();
    expect(host.forkedAt).toHaveLength(3);
    expect(requests.every(({ child }) => child)).toBe(true);
    const inChild = (n: number) => requests.filter(({ child }) => child === host.children[n]);
    expect([0, 1, 2].map((n) => inChild(n).length)).toEqual([3, 3, 1]);
    for (const request of [...inChild(0), ...inChild(1).slice(1)]) request.answer();
    await time.advance(0);
    const next = asks(4);
    await time.advance(0);
    expect(next.map(({ child }) => child?.id)).toEqual(["vm-0", "vm-2", "vm-1", "vm-0"]);
    expect(host.forkedAt).toHaveLength(3);
  });

  test("retires what demand has not needed for idleMs, the oldest first, and all of them in the end", async () => {
    const { host, asks, ask, forked, time, router } = openRouter({
      ...{ mode: "shared", concurrency: 1, idleMs: 1000 },
    });
    const requests = asks(3);
    await forked();
    for (const request of requests) request.answer();
    await time.advance(990);
    const last = ask();
    await time.advance(9);
    expect(router.stats().children).toMatchObject({ idle: 2, busy: 1 });
    await time.advance(1);
    expect(router.stats()).toMatchObject({ children: { idle: 0, busy: 1, ending: 2 }, retired: { idle: 2 } });
    expect(last.child).toBe(host.children[2]!);
    last.answer();
    await time.advance(1000);
    expect(router.stats().children).toMatchObject({ idle: 0, busy: 0, ending: 1 });
  });

  test("lets those fall idle that are not needed, although requests never cease", async () => {
    const { time, asks, ask, router, forked } = openRouter({ mode: "shared", concurrency: 2, idleMs: 1000 });
    const burst = asks(8);
    await forked();
    for (const request of burst) request.answer();
    await time.advance(0);
    for (let ms = 0; ms < 3000; ms += 100) {
      const pair = [ask(), ask()];
      await time.advance(100);
      for (const request of pair) request.answer();
      await time.advance(0);
    }
    expect(router.stats()).toMatchObject({ forks: 4, retired: { idle: 3 } });
  });

  test("has them fall idle also where each of the least loaded would have requests all the time", async () => {
    const { time, asks, ask, router, forked } = openRouter({
      ...{ mode: "shared", concurrency: 10, idleMs: 1000 },
    });
    const burst = asks(30);
    await forked();
    for (const request of burst) request.answer();
    await time.advance(0);
    const running = asks(6);
    for (let ms = 0; ms < 5000; ms += 100) {
      await time.advance(100);
      running.shift()!.answer();
      running.push(ask());
    }
    expect(router.stats()).toMatchObject({ forks: 3, retired: { idle: 2 }, children: { idle: 0, busy: 1 } });
  });

  test("replaces a child that has served maxRequests, is too old, or failed; others finish in it", async () => {
    const { host, ask, asks, forked, time, router } = openRouter({
      ...{ mode: "shared", concurrency: 2, maxRequests: 3, maxAgeMs: 5000 },
    });
    const pair = asks(2);
    await forked();
    pair[0]!.answer();
    await time.advance(0);
    const third = ask();
    const fourth = ask();
    await forked();
    expect(third.child).toBe(pair[1]!.child!);
    expect(fourth.child?.id).toBe("vm-1");
    for (const request of [pair[1]!, third]) request.answer();
    await time.advance(5);
    expect(router.stats().retired.served).toBe(1);
    const fifth = ask();
    await time.advance(0);
    expect(fifth.child?.id).toBe("vm-1");
    fourth.fail(new FlurryError("TASK_TIMEOUT", "No answer"));
    await time.advance(5);
    expect([fourth.outcome, fifth.outcome]).toEqual(["TASK_TIMEOUT", undefined]);
    expect(router.stats()).toMatchObject({ children: { draining: 1 }, retired: { error: 0 } });
    fifth.answer();
    await time.advance(5);
    expect([fifth.outcome, router.stats().retired.error]).toEqual(["answered", 1]);
    const sixth = ask();
    await forked();
    sixth.answer();
    await time.advance(5000);
    expect(router.stats().retired.age).toBe(1);
    expect(host.children.map(({ disposals }) => disposals)).toEqual([1, 1, 1]);
    await close(router, time);
  });

  test("keeps the place of a request whose caller has left until the work on it ends", async () => {
    const { ask, forked, time, router } = openRouter(
      { mode: "shared", concurrency: 1, idleMs: 300 },
      { maxChildren: 1 },
    );
    const request = ask({ heeds: false });
    await forked();
    request.abort();
    const next = ask();
    await time.advance(0);
    expect([request.outcome, next.child, router.stats().inFlight]).toEqual(["ABORTED", undefined, 1]);
    request.answer();
    await time.advance(0);
    expect(next.child).toBe(request.child!);
    // Work that ends because its caller has left says nothing about the child.
    next.abort();
    const last = ask();
    await time.advance(0);
    expect([next.outcome, last.child]).toEqual(["ABORTED", request.child]);
    expect(router.stats().retired.error).toBe(0);
  });
});

describe("RequestRouter while others wait for room", () => {
  test("ends idle children one by one, and none that has requests", async () => {
    const { host, asks, forked, time, router } = openRouter({ mode: "shared", concurrency: 1 });
    const requests = asks(3);
    await forked();
    requests[0]!.answer();
    await time.advance(0);
    expect(router.stats().children).toMatchObject({ idle: 1, busy: 2 });
    host.roomWanted = true;
    router.giveWay();
    expect(router.stats()).toMatchObject({ children: { idle: 0, busy: 2, ending: 1 }, retired: { idle: 1 } });
    router.giveWay();
    expect(router.stats().children).toMatchObject({ busy: 2 });
    // One that falls idle meanwhile gives way by itself, when the first one is gone and that was not enough.
    requests[1]!.answer();
    await time.advance(0);
    expect(router.stats().children).toMatchObject({ idle: 1, ending: 1 });
    await time.advance(5);
    expect(router.stats()).toMatchObject({ children: { idle: 0, busy: 1 }, retired: { idle: 2 } });
    host.roomWanted = false;
    requests[2]!.answer();
    await time.advance(0);
    expect(router.stats().children).toMatchObject({ idle: 1 });
  });

  test("lets others run on a full host while a session is away, and itself when it is back", async () => {
    const { host, ask, forked, time, router } = openRouter({ mode: "session" }, { places: 1, ahead: 0 });
    const a = ask({ session: "a" });
    await forked();
    const b = ask({ session: "b" });
    await time.advance(100);
    expect(host.forkedAt.length).toBe(1);
    a.answer();
    await forked();
    expect(host.forkedAt.length).toBe(2);
    const again = ask({ session: "a" });
    await time.advance(0);
    expect(router.stats().children).toMatchObject({ busy: 2 });
    again.answer();
    b.answer();
    await time.advance(0);
    expect(router.stats()).toMatchObject({ forks: 2, children: { idle: 2, busy: 0 } });
  });

  test("keeps the children of sessions, which have state", async () => {
    const { host, ask, forked, time, router } = openRouter({ mode: "session" });
    const request = ask({ session: "a" });
    await forked();
    request.answer();
    await time.advance(0);
    host.roomWanted = true;
    router.giveWay();
    expect(router.stats().children).toMatchObject({ idle: 1 });
  });
});
