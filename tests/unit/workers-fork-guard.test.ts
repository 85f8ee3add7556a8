import { describe, expect, test } from "bun:test";
import { FlurryError } from "../../errors/errors.ts";
import { guardForks } from "../../runtime/workers/js/fork-guard.ts";
import { RequestRouter } from "../../runtime/workers/scaling/request-router.ts";
import { SimulatedHost } from "../support/workers-scaling-host.ts";
import { AskedRequest } from "../support/workers-scaling-requests.ts";
import { SimulatedTime } from "../support/workers-scaling-time.ts";

/** A router whose forks fail from the `from`-th on, as long as the test does not mend them. */
function open({ from = 0, ahead = 0 } = {}) {
  const time = new SimulatedTime();
  const state = { broken: true };
  const failure = (n: number) =>
    state.broken && n >= from ? new FlurryError("CHILD_UNPROVEN", "It is somebody else") : undefined;
  const host = new SimulatedHost(time, { forkMs: 50, failure });
  const ports = guardForks(
    {
      fork: host.fork.bind(host),
      admit: host.admit.bind(host),
      admitAhead: host.admitAhead.bind(host),
    },
    { name: "shop", clock: time },
  );
  const router = new RequestRouter({
    ...{ ports, isolation: { mode: "request" }, clock: time, after: time.after, ahead },
  });
  const ask = async (ms = 1000) => {
    const request = new AskedRequest(router, {});
    await time.advance(ms);
    return request;
  };
  return { time, host, router, state, ask };
}

describe("guardForks()", () => {
  test("has requests fail at once, with the reason and a time, when forks have failed five times", async () => {
    const { host, ask } = open();
    expect((await ask()).outcomes).toEqual(["CHILD_UNPROVEN"]);
    expect(host.forkedAt).toHaveLength(3);
    for (let n = 0; n < 100; n++) {
      const request = await ask(n === 0 ? 100 : 0);
      expect(request.error).toMatchObject({
        code: "NOT_READY",
        message: 'Forks of "shop" keep failing: CHILD_UNPROVEN: It is somebody else',
        retryAfterSeconds: 1,
      });
    }
    expect([host.forkedAt.length, host.tickets]).toEqual([5, 0]);
  });

  test("tries one fork after a second, then after twice as long each time, up to half a minute", async () => {
    const { host, ask, time } = open();
    await ask();
    await ask(100);
    for (const seconds of [1, 2, 4, 8, 16, 30, 30]) {
      const forks = host.forkedAt.length;
      await time.advance(seconds * 1000 - 200);
      expect((await ask(0)).error).toMatchObject({ code: "NOT_READY" });
      await time.advance(200);
      // The second one comes while the first one tries.
      const tries = [await ask(0), await ask(100)];
      expect(tries.map(({ outcomes }) => outcomes)).toEqual([["NOT_READY"], ["NOT_READY"]]);
      expect(host.forkedAt.length).toBe(forks + 1);
    }
  });

  test("serves again as soon as a fork has worked", async () => {
    const { ask, state, time } = open();
    await ask();
    await ask(100);
    state.broken = false;
    await time.advance(1000);
    expect((await ask(100)).child?.id).toBe("vm-5");
    const next = [await ask(0), await ask(100)];
    expect(next.every(({ child }) => child)).toBe(true);
  });

  test("still serves with children that there are, and forks none ahead", async () => {
    const { ask, router, host, time } = open({ from: 2, ahead: 2 });
    const first = await ask(100);
    first.answer();
    await time.advance(100);
    expect(router.stats()).toMatchObject({ children: { spare: 1 } });
    const failed = [await ask(0), await ask(0)];
    await time.advance(1000);
    await ask(1000);
    const forks = host.forkedAt.length;
    expect([failed[0]!.child?.id, failed[1]!.outcome]).toEqual(["vm-1", "CHILD_UNPROVEN"]);
    failed[0]!.answer();
    await time.advance(100);
    expect(failed[0]!.outcome).toBe("answered");
    expect(host.forkedAt.length - forks).toBeLessThanOrEqual(1);
  });
});
