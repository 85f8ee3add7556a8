import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { ChildSession } from "../../memserver/child/session.ts";
import { rejection } from "../support/agent-peer.ts";
import { bitmapOf } from "../support/memserver-qemu.ts";
import {
  AT_ONCE,
  expectComplete,
  expectPages,
  range,
  type Setting,
  setting,
  turns,
} from "../support/memserver-session.ts";
import { openDescriptors, openedSince } from "../support/vm.ts";

let before: string[];

beforeEach(() => {
  before = openDescriptors();
});

afterEach(() => {
  expect(openedSince(before)).toEqual([]);
});

describe.each([
  ["one connection", false],
  ["two connections", true],
])("ChildSession.recover() with %s", (_name, preempt) => {
  /** Plays QEMU's part until the child goes on. */
  async function recovered(set: Setting, had: readonly number[]): Promise<ChildSession> {
    const { qemu, spec } = set;
    const recovering = set.recover();
    await qemu.until(() => qemu.kinds.includes("recv-bitmap"));
    // QEMU takes the first connection for the main one: there is no other before it has spoken on it.
    await turns();
    expect([qemu.kinds, qemu.connections]).toEqual([["recv-bitmap"], 1]);
    qemu.say(bitmapOf(spec.block, had));
    await qemu.until(() => qemu.kinds.includes("resume"));
    await qemu.until(() => qemu.connections === (preempt ? 2 : 1));
    await turns();
    expect(qemu.kinds).toEqual(["recv-bitmap", "resume", "part"]);
    expect(qemu.pages).toEqual([]);
    qemu.say({ kind: "resume-ack", at: 0 });
    return await recovering;
  }

  test("asks what the child has, and gives it the rest", async () => {
    const had = [0, 1, 17, 63];
    const changes = { preempt, recovers: true, background: AT_ONCE };
    await using set = await setting({ pages: 64, zeros: [3, 17] }, changes);
    const session = await recovered(set, had);
    await expectComplete(set, session);
    expectPages(
      set,
      set.source.dataPages.filter((page) => !had.includes(page)),
    );
  });

  test("answers what the guest still waits for, and not what is there", async () => {
    await using set = await setting({ pages: 64, zeros: [3, 17] }, { preempt, recovers: true });
    const session = await recovered(set, [9]);
    for (const page of [9, 3, 40, 40, 9]) set.qemu.request(page);
    await set.qemu.until(() => set.qemu.pages.length === 2);
    await turns();
    expectPages(set, [3, 40]);
    // Its CPUs ran long ago.
    expect(session.stats).toMatchObject({ requests: 2, requestsBeforeRun: 0 });
  });

  test("has the end at once for a child that has all that it needs", async () => {
    const changes = { preempt, recovers: true, background: AT_ONCE };
    await using set = await setting({ pages: 64, zeros: range(32, 64) }, changes);
    await expectComplete(set, await recovered(set, range(0, 32)));
    expectPages(set, []);
  });

  test.each(["bitmap", "resume"])(
    "rejects when the child goes instead of its answer to the %s",
    async (at) => {
      await using set = await setting({ pages: 64 }, { preempt, recovers: true });
      const { qemu } = set;
      const recovering = rejection(set.recover());
      await qemu.until(() => qemu.kinds.includes("recv-bitmap"));
      if (at === "resume") qemu.say(bitmapOf(set.spec.block, []));
      if (at === "resume") await qemu.until(() => qemu.kinds.includes("resume"));
      qemu.main.destroy();
      expect((await recovering).code).toBe("MEMSERVER_FAILED");
      await qemu.until(() => qemu.left);
    },
  );

  test("rejects when nobody waits, when the child says what it must not, and at an abort", async () => {
    await using set = await setting({ pages: 64 }, { preempt, recovers: true });
    const { qemu, spec, source } = set;
    const missing = await rejection(ChildSession.recover({ ...spec, socket: `${spec.socket}-not` }, source));
    expect(missing.code).toBe("MEMSERVER_FAILED");
    const recovering = rejection(set.recover());
    await qemu.until(() => qemu.kinds.includes("recv-bitmap"));
    qemu.say(bitmapOf({ ...spec.block, bytes: 2 ** 20 }, []));
    expect((await recovering).code).toBe("STREAM_INVALID");
    await qemu.until(() => qemu.left);
  });

  test("lets go of a child at an abort", async () => {
    await using set = await setting({ pages: 64 }, { preempt, recovers: true });
    const { qemu, spec, source } = set;
    const abort = new AbortController();
    const recovering = rejection(ChildSession.recover(spec, source, abort.signal));
    await qemu.until(() => qemu.kinds.includes("recv-bitmap"));
    abort.abort();
    expect((await recovering).code).toBe("MEMSERVER_FAILED");
    await qemu.until(() => qemu.left);
  });
});

describe("a child that is measured", () => {
  test.each([false, true])("says when a page is in its place (second connection: %p)", async (preempt) => {
    await using set = await setting({ pages: 64 }, { preempt, measure: true });
    const session = await set.start();
    const { qemu } = set;
    await qemu.until(() => qemu.kinds.includes("part"));
    qemu.request(1);
    // One at a time.
    qemu.request(2);
    await qemu.until(() => qemu.kinds.slice(8).includes("part") && qemu.pages.length === 2);
    expect(qemu.kinds.slice(8)).toEqual(["section-end", "ping", "part"]);
    const ping = qemu.items.find((item) => item.kind === "ping")!;
    expect(session.stats.placedUs).toEqual([]);
    qemu.say({ kind: "pong", at: 0, value: ping.value });
    qemu.request(3);
    await qemu.until(() => qemu.kinds.slice(11).includes("part"));
    expect(session.stats.placedUs).toHaveLength(1);
    expect(session.stats.placedUs[0]).toBeGreaterThan(0);
  });
});
