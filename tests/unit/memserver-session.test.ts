import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { FlurryError } from "../../errors/errors.ts";
import { ChildSession } from "../../memserver/child/session.ts";
import { PAGE_BYTES } from "../../memserver/stream/format.ts";
import { rejection } from "../support/agent-peer.ts";
import { requestOf } from "../support/memserver-qemu.ts";
import {
  AT_ONCE,
  expectComplete,
  expectPages,
  NEVER,
  range,
  setting,
  turns,
} from "../support/memserver-session.ts";
import { DEVICES } from "../support/memserver-streams.ts";
import { openDescriptors, openedSince } from "../support/vm.ts";

let before: string[];

beforeEach(() => {
  before = openDescriptors();
});

afterEach(() => {
  expect(openedSince(before)).toEqual([]);
});

describe("ChildSession.start()", () => {
  const head = [
    ...["header", "configuration", "open-return-path", "advise", "blocks", "discard", "package", "part"],
  ] as const;

  test("sends what a child needs to run, in the order that QEMU needs", async () => {
    await using set = await setting({ pages: 64 });
    await set.start();
    const { qemu } = set;
    await qemu.until(() => qemu.kinds.includes("part"));
    expect(qemu.kinds).toEqual([...head]);
    expect(qemu.items).toMatchObject([
      {},
      { machine: "pc-q35-10.0", capabilities: [] },
      {},
      {},
      { sectionId: 1, blocks: [set.spec.block] },
      // QEMU dead-locks at LISTEN without any.
      { block: "ram0", ranges: [{ start: 0, length: PAGE_BYTES }] },
      { items: [{ kind: "listen" }, { kind: "devices" }, { kind: "ping" }, { kind: "run" }] },
      { sectionId: 1 },
    ]);
    const packaged = qemu.items.find((item) => item.kind === "package")!;
    expect(packaged.items.find((item) => item.kind === "devices")!.bytes).toEqual(DEVICES);
    await turns();
    expect(qemu.kinds).toEqual([...head]);
    expect(qemu.pages).toEqual([]);
  });

  test("opens the second connection after the first one, and says nothing on it unasked", async () => {
    await using set = await setting({ pages: 64 }, { preempt: true });
    await set.start();
    await set.qemu.until(() => set.qemu.connections === 2 && set.qemu.kinds.includes("part"));
    expect(set.qemu.kinds).toEqual([...head]);
    expect(set.qemu.urgent.bytesRead).toBe(0);
  });

  test("rejects when nobody waits, when nobody takes the second connection, and at an abort", async () => {
    await using set = await setting({ pages: 64 }, { preempt: true });
    const nobody = `${set.spec.socket}-not`;
    let dialled = 0;
    const half = {
      ...set.spec,
      get socket() {
        return dialled++ === 0 ? set.spec.socket : nobody;
      },
    };
    const refused = await rejection(ChildSession.start(half, set.source));
    expect(refused.code).toBe("MEMSERVER_FAILED");
    // It has let go of the first one, which QEMU would wait on.
    await set.qemu.until(() => set.qemu.left);
    const missing = await rejection(ChildSession.start({ ...set.spec, socket: nobody }, set.source));
    expect(missing.code).toBe("MEMSERVER_FAILED");
    expect(missing.message).toContain(nobody);
    const aborted = await rejection(ChildSession.start(set.spec, set.source, AbortSignal.abort()));
    expect(aborted.code).toBe("ABORTED");
  });
});

describe.each([
  ["one connection", false],
  ["two connections", true],
])("a child with %s", (_name, preempt) => {
  test("gets every page that is no zero page once, and then the end", async () => {
    await using set = await setting({ pages: 300, zeros: [0, 7, 8, 299] }, { preempt, background: AT_ONCE });
    const session = await set.start();
    await expectComplete(set, session);
    expectPages(set, set.source.dataPages);
    expect(session.stats).toMatchObject({ requests: 0, requestsBeforeRun: 0, pushed: 296 });
  });

  test("gets the end when it needs no page at all", async () => {
    await using set = await setting({ pages: 16, zeros: range(0, 16) }, { preempt, background: AT_ONCE });
    await expectComplete(set, await set.start());
    expectPages(set, []);
  });

  test("gets its working set first, in its order, zero pages too, and the rest in the background", async () => {
    const workingSet = Uint32Array.of(50, 51, 52, 9, 3, 4, 60);
    const changes = { preempt, workingSet, background: { ...AT_ONCE, afterMs: 30 } };
    await using set = await setting({ pages: 64, zeros: [9, 30] }, changes);
    const session = await set.start();
    await set.qemu.until(() => set.qemu.pages.length === workingSet.length);
    expectPages(set, [...workingSet]);
    // Each run of adjacent pages as a whole; zero pages may go before the run that they are next to.
    expect(set.qemu.pagesOf("ram0")).toEqual([...workingSet]);
    await expectComplete(set, session);
    expectPages(set, [...set.source.dataPages, 9]);
  });

  test("gets what it asks for, zero pages as zeros, and nothing twice", async () => {
    await using set = await setting({ pages: 64, zeros: [5] }, { preempt });
    const session = await set.start();
    const { qemu } = set;
    await qemu.until(() => qemu.kinds.includes("part"));
    for (const page of [9, 5, 9, 5, 63, 9]) qemu.request(page);
    await qemu.until(() => qemu.pages.length >= 3);
    qemu.request(0);
    await qemu.until(() => qemu.pages.length >= 4);
    expect(qemu.pagesOf("ram0")).toEqual([9, 5, 63, 0]);
    expectPages(set, [9, 5, 63, 0]);
    expect(new Set(qemu.pages.map(({ connection }) => connection))).toEqual(
      new Set([preempt ? "urgent" : "main"]),
    );
    expect(session.stats).toMatchObject({ requests: 4, pushed: 0 });
    expect(session.stats.serviceUs).toHaveLength(4);
  });

  test("gets zeros for what is in no image, once", async () => {
    await using set = await setting({ pages: 64 }, { preempt });
    const session = await set.start();
    const { qemu } = set;
    await qemu.until(() => qemu.kinds.includes("part"));
    qemu.request(3, "pc.bios");
    qemu.request(3, "ram0");
    qemu.request(3, "pc.bios");
    qemu.request(4, "pc.bios");
    await qemu.until(() => qemu.pages.length >= 3);
    expect(qemu.pages.map(({ block, page, zero }) => [block, page, zero])).toEqual([
      ["pc.bios", 3, true],
      ["ram0", 3, false],
      ["pc.bios", 4, true],
    ]);
    expectPages(set, [3]);
    expect(session.stats.requests).toBe(1);
  });

  test("is told apart by its answer to the ping: what it asked for before its CPUs ran, and after", async () => {
    await using set = await setting({ pages: 64 }, { preempt, runs: false });
    const session = await set.start();
    const { qemu } = set;
    await qemu.until(() => qemu.kinds.includes("part"));
    for (const page of [1, 2]) qemu.request(page);
    qemu.run();
    qemu.request(3);
    await qemu.until(() => qemu.pages.length === 3);
    expect(session.stats).toMatchObject({ requests: 3, requestsBeforeRun: 2 });
  });

  test("has no end before its CPUs run: until then all that it asks for is answered", async () => {
    const changes = { preempt, runs: false, background: AT_ONCE };
    await using set = await setting({ pages: 64, zeros: [5, 6] }, changes);
    const session = await set.start();
    const { qemu } = set;
    await qemu.until(() => qemu.pages.length === 62);
    await turns();
    qemu.request(5);
    await qemu.until(() => qemu.pages.length === 63);
    expect(qemu.ended).toBe(false);
    qemu.run();
    await expectComplete(set, session);
    expectPages(set, [...set.source.dataPages, 5]);
  });

  test("shows in which order it needs its pages, as long as they are few", async () => {
    await using set = await setting({ pages: 50, zeros: [8] }, { preempt, record: true });
    const session = await set.start();
    const { qemu } = set;
    await qemu.until(() => qemu.kinds.includes("part"));
    for (const page of [8, 30, 8, 2, 31, 40, 41, 42]) qemu.request(page);
    await qemu.until(() => qemu.pages.length === 7);
    expect([...session.workingSet!]).toEqual([8, 30, 2, 31, 40]);
  });

  test("waits for what comes from elsewhere, and has the end only after it", async () => {
    await using set = await setting({ pages: 64, far: [3, 4, 20, 40] }, { preempt, background: AT_ONCE });
    const session = await set.start();
    const { qemu, source } = set;
    await source.untilWaiting(2);
    await qemu.until(() => qemu.kinds.includes("part"));
    // Asked for urgently, once, though the background has asked for it too.
    qemu.request(20);
    qemu.request(20);
    await source.untilWaiting(3);
    const urgent = source.waiting.filter((fetch) => fetch.urgent);
    expect(urgent).toMatchObject([{ page: 20, count: 1 }]);
    await turns();
    expect(qemu.ended).toBe(false);
    // The end waits for what was asked for, too.
    for (const fetch of source.waiting) if (!fetch.urgent) fetch.arrive();
    await qemu.until(() => qemu.pages.length === 63);
    await turns();
    expect(qemu.ended).toBe(false);
    urgent[0]!.arrive();
    await expectComplete(set, session);
    expectPages(set, source.dataPages);
    expect(source.fetches.filter((fetch) => fetch.urgent)).toHaveLength(1);
  });

  test.each(["background", "urgent"])(
    "fails with what the source says when a page cannot be had in the %s",
    async (how) => {
      const background = how === "background" ? AT_ONCE : NEVER;
      await using set = await setting({ pages: 64, far: [20] }, { preempt, background });
      const session = await set.start();
      const { qemu, source } = set;
      await qemu.until(() => qemu.kinds.includes("part"));
      if (how === "urgent") qemu.request(20);
      await source.untilWaiting(1);
      const error = new FlurryError("PAGES_UNAVAILABLE", "Nobody has page 20");
      source.waiting[0]!.fail(error);
      expect(await session.ended).toEqual({ kind: "failed", error });
      await qemu.until(() => qemu.left);
      expect(qemu.ended).toBe(false);
    },
  );

  test.each(["background", "urgent"])(
    "fails, and never has an end, when a page that was fetched in the %s is not there",
    async (how) => {
      const background = how === "background" ? AT_ONCE : NEVER;
      await using set = await setting({ pages: 64, far: [20] }, { preempt, background });
      const session = await set.start();
      const { qemu, source } = set;
      await qemu.until(() => qemu.kinds.includes("part"));
      if (how === "urgent") qemu.request(20);
      await source.untilWaiting(1);
      source.waiting[0]!.pretend();
      expect(await session.ended).toMatchObject({ kind: "failed", error: { code: "INTERNAL" } });
      await qemu.until(() => qemu.left);
      // With it the guest would read zeros.
      expect(qemu.ended).toBe(false);
    },
  );

  test.each(["quiet", "measured"])(
    "has its questions of the last moment answered where it waits for that, and nothing after the end (%s)",
    async (how) => {
      const changes = { preempt, background: AT_ONCE, measure: how === "measured" };
      await using set = await setting({ pages: 64, zeros: [5, 6] }, changes);
      const session = await set.start();
      const { qemu } = set;
      await qemu.until(() => qemu.ended);
      // It is on its way when QEMU reads the end.
      qemu.say(requestOf(5, "ram0"), requestOf(9, "ram0"), requestOf(2, "pc.bios"));
      if (preempt) await qemu.until(() => qemu.pages.length === 64);
      await turns();
      const last = preempt ? [5] : [];
      expectPages(set, [...set.source.dataPages, ...last]);
      await expectComplete(set, session);
    },
  );

  test("has its end when QEMU closes what it does not need any more before it says so", async () => {
    await using set = await setting({ pages: 64, zeros: [5, 6] }, { preempt, background: AT_ONCE });
    const session = await set.start();
    await set.qemu.until(() => set.qemu.ended && (!preempt || set.qemu.connections === 2));
    if (preempt) {
      set.qemu.urgent.destroy();
      await turns();
    }
    // Its guest may ask until the very end; nobody waits for the answer any more.
    for (const page of [5, 6, 5]) set.qemu.request(page);
    await turns();
    await expectComplete(set, session);
  });

  test("is let go when it is given up, in the middle of everything", async () => {
    await using set = await setting({ pages: 4096, far: [4000] }, { preempt, background: AT_ONCE });
    const session = await set.start();
    const { qemu } = set;
    await qemu.until(() => qemu.pages.length > 0);
    qemu.request(4000);
    await set.source.untilWaiting(1);
    await session[Symbol.asyncDispose]();
    expect(await session.ended).toEqual({ kind: "closed" });
    await qemu.until(() => qemu.left);
    expect(qemu.ended).toBe(false);
    expect(set.source.waiting).toEqual([]);
  });

  test("is lost when QEMU closes the connection", async () => {
    await using set = await setting({ pages: 4096 }, { preempt, background: AT_ONCE });
    const session = await set.start();
    await set.qemu.until(() => set.qemu.pages.length > 0);
    set.qemu.main.destroy();
    expect(await session.ended).toMatchObject({ kind: "lost" });
  });

  if (preempt) {
    test("is lost when QEMU closes the second connection before the end", async () => {
      await using set = await setting({ pages: 64 }, { preempt });
      const session = await set.start();
      await set.qemu.until(() => set.qemu.connections === 2 && set.qemu.kinds.includes("part"));
      set.qemu.urgent.destroy();
      expect(await session.ended).toMatchObject({ kind: "lost" });
      await set.qemu.until(() => set.qemu.left);
    });

    test("gets what it waits for while the first connection is stuck", async () => {
      await using set = await setting({ pages: 4096, zeros: [2000] }, { preempt, background: AT_ONCE });
      const session = await set.start();
      const { qemu } = set;
      await qemu.until(() => qemu.connections === 2 && qemu.kinds.includes("part"));
      qemu.main.pause();
      await turns();
      expect(session.stats.pushed).toBeLessThan(1024);
      for (const page of [4095, 2000, 3000]) qemu.request(page);
      await qemu.until(() => qemu.pages.filter(({ connection }) => connection === "urgent").length === 3);
      qemu.main.resume();
      await expectComplete(set, session);
      expectPages(set, range(0, 4096));
    });
  } else {
    test("gets what it waits for before what it has not asked for", async () => {
      await using set = await setting({ pages: 8192, zeros: [6000] }, { preempt, background: AT_ONCE });
      const session = await set.start();
      const { qemu } = set;
      await qemu.until(() => qemu.pages.length > 0);
      const wanted = [8191, 6000, 7000, 8000];
      const after = qemu.pages.length;
      for (const page of wanted) qemu.request(page);
      await expectComplete(set, session);
      expectPages(set, range(0, 8192));
      // Behind no more than what was on its way: the rest of 8192 pages comes after them.
      for (const page of wanted) expect(qemu.pagesOf("ram0").indexOf(page) - after).toBeLessThan(1024);
    });
  }

  test.each([0, 1])("is lost when QEMU ends it before its time, with status %d", async (status) => {
    await using set = await setting({ pages: 64 }, { preempt });
    const session = await set.start();
    await set.qemu.until(() => set.qemu.kinds.includes("part"));
    set.qemu.say({ kind: "shut", at: 0, status });
    const reason = `QEMU ended it with status ${status}`;
    expect(await session.ended).toEqual({ kind: "lost", reason });
  });
});
