import { describe, expect, test } from "bun:test";
import type { DeliveryStore } from "../../runtime/jobs/ports.ts";
import type { PortUnderTest } from "./store-port.ts";

const NOON = "2026-01-31T12:00:00.000Z";

/** A message to be; all else of it is the same for all. */
export interface TestDelivery {
  id: string;
  job: string;
  secret?: string;
  /** @default URL */
  url?: string;
}

/** A DeliveryStore and the way that messages come into it. */
export interface DeliveriesUnderTest extends PortUnderTest<DeliveryStore> {
  enqueue(delivery: TestDelivery): Promise<void>;
}

/** What every DeliveryStore does. `enqueue` has `EVENT` and the body `body of ID`. */
export function deliveryStoreConformance(open: () => Promise<DeliveriesUnderTest>): void {
  describe("a DeliveryStore", () => {
    test("takeDue() gives each message once, first come first served, up to the limit", async () => {
      await using store = await open();
      await store.enqueue({ id: "m1", job: "a", secret: "of the hook" });
      await store.enqueue({ id: "m2", job: "a" });
      await store.enqueue({ id: "m3", job: "b" });
      expect(await store.port.nextMs()).toBe(0);
      const message = { job: "a", event: EVENT, url: URL, attempts: 0 };
      expect(await store.port.takeDue(2)).toEqual([
        { ...message, id: "m1", body: "body of m1", secret: "of the hook" },
        { ...message, id: "m2", body: "body of m2" },
      ]);
      expect(idsOf(await store.port.takeDue(10))).toEqual(["m3"]);
      expect(await store.port.takeDue(10)).toEqual([]);
      expect(await store.port.nextMs()).toBeUndefined();
    });

    test("takeDue() passes by messages to a receiver that has as many taken as it may have", async () => {
      await using store = await open();
      const first = ["https://a.test/1", "https://A.test:443/2", "https://a.test./3", "https://a.test/4"];
      for (const [at, url] of first.entries()) await store.enqueue({ id: `a${at + 1}`, job: "a", url });
      await store.enqueue({ id: "b1", job: "b", url: "https://a.test:444/" });
      await store.enqueue({ id: "c1", job: "c", url: "http://a.test/" });
      expect(idsOf(await store.port.takeDue(3, 2))).toEqual(["a1", "a2", "b1"]);
      expect(await store.port.nextMs(2)).toBe(0);
      expect(idsOf(await store.port.takeDue(9, 2))).toEqual(["c1"]);
      expect(await store.port.nextMs(2)).toBeUndefined();
      await store.port.attempted("a2", { ms: 1, ok: false, retryInMs: 10 });
      expect(idsOf(await store.port.takeDue(9, 2))).toEqual(["a3"]);
      await store.port.attempted("a1", { status: 200, ms: 1, ok: true });
      await store.port.attempted("a3", { status: 410, ms: 1, ok: false });
      expect(idsOf(await store.port.takeDue(9, 2))).toEqual(["a4"]);
      expect(await store.port.nextMs(2)).toBe(10);
      store.clock.advance(10);
      expect(idsOf(await store.port.takeDue(9, 2))).toEqual(["a2"]);
    });

    test("what is taken keeps its receiver's other messages in their order", async () => {
      await using store = await open();
      await store.enqueue({ id: "a1", job: "a", url: "https://a.test/" });
      await store.enqueue({ id: "b1", job: "b", url: "https://b.test/" });
      await store.enqueue({ id: "a2", job: "a", url: "https://a.test/" });
      for (const id of ["a1", "b1", "a2"]) expect(idsOf(await store.port.takeDue(1))).toEqual([id]);
    });

    test("a message is due again after its wait, by the monotonic clock alone", async () => {
      await using store = await open();
      await store.enqueue({ id: "m1", job: "a" });
      await store.port.takeDue(1);
      await store.port.attempted("m1", { status: 503, ms: 12, ok: false, retryInMs: 5000 });
      store.clock.jump(86_400_000);
      expect(await store.port.takeDue(1)).toEqual([]);
      expect(await store.port.nextMs()).toBe(5000);
      store.clock.advance(4999);
      expect(await store.port.takeDue(1)).toEqual([]);
      expect(await store.port.nextMs()).toBe(1);
      store.clock.jump(-7 * 86_400_000);
      store.clock.advance(1);
      expect(await store.port.takeDue(1)).toMatchObject([{ id: "m1", attempts: 1 }]);
    });

    test("list() tells of all attempts, and when the next one comes", async () => {
      await using store = await open();
      await store.enqueue({ id: "m1", job: "a" });
      await store.enqueue({ id: "m2", job: "a" });
      await store.enqueue({ id: "m3", job: "b" });
      const message = { job: "a", event: EVENT, url: URL };
      const waiting = { ...message, state: "pending" as const, attempts: [], nextTryAt: NOON };
      expect(await store.port.list("a")).toEqual([
        { ...waiting, id: "m1" },
        { ...waiting, id: "m2" },
      ]);
      await store.port.takeDue(2);
      await store.port.attempted("m1", { error: "refused", ms: 3.4, ok: false, retryInMs: 1000 });
      await store.port.attempted("m2", { status: 410, ms: 7, ok: false });
      expect(await store.port.list("a")).toEqual([
        {
          ...{ ...message, id: "m1", state: "pending", nextTryAt: "2026-01-31T12:00:01.000Z" },
          attempts: [{ at: NOON, error: "refused", ms: 3 }],
        },
        { ...message, id: "m2", state: "failed", attempts: [{ at: NOON, status: 410, ms: 7 }] },
      ]);
      store.clock.advance(1000);
      await store.port.takeDue(1);
      await store.port.attempted("m1", { status: 200, ms: 5, ok: true });
      await store.reopen();
      expect((await store.port.list("a"))[0]).toEqual({
        ...{ ...message, id: "m1", state: "delivered" },
        attempts: [
          { at: NOON, error: "refused", ms: 3 },
          { at: "2026-01-31T12:00:01.000Z", status: 200, ms: 5 },
        ],
      });
      expect(await store.port.list("none")).toEqual([]);
    });

    test("a restart makes due again what was pending or taken, and nothing that has ended", async () => {
      await using store = await open();
      for (const id of ["taken", "waiting", "delivered", "failed"]) await store.enqueue({ id, job: "a" });
      await store.port.takeDue(10);
      await store.port.attempted("waiting", { ms: 1, ok: false, retryInMs: 3_600_000 });
      await store.port.attempted("delivered", { status: 204, ms: 1, ok: true });
      await store.port.attempted("failed", { status: 400, ms: 1, ok: false });
      await store.reopen();
      expect(await store.port.nextMs()).toBe(0);
      const due = await store.port.takeDue(10);
      expect(due.map(({ id, attempts }) => [id, attempts])).toEqual([
        ["taken", 0],
        ["waiting", 1],
      ]);
    });

    test("onDue() tells of new messages and of new waits, until it is disposed of", async () => {
      await using store = await open();
      let told = 0;
      {
        using _listening = store.port.onDue(() => {
          told++;
        });
        await store.enqueue({ id: "m1", job: "a" });
        expect(told).toBe(1);
        await store.port.takeDue(1);
        await store.port.attempted("m1", { ms: 1, ok: false, retryInMs: 10 });
        expect(told).toBe(2);
      }
      await store.enqueue({ id: "m2", job: "a" });
      expect(told).toBe(2);
    });

    test("an attempt at a message that is not there (any more) is nothing", async () => {
      await using store = await open();
      await store.port.attempted("never", { status: 200, ms: 1, ok: true });
      expect(await store.port.nextMs()).toBeUndefined();
    });
  });
}

export const EVENT = "job.succeeded" as const;
export const URL = "https://example.com/hook";

function idsOf(items: readonly { id: string }[]): string[] {
  return items.map(({ id }) => id);
}
