import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { requestOf } from "../support/memserver-qemu.ts";
import { expectPages, range, setting, turns } from "../support/memserver-session.ts";
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
])("a child with %s", (_name, preempt) => {
  test("does not read what it asks for when it does not take what it has asked for", async () => {
    // More requests than any buffer holds.
    const pages = 16_384;
    await using set = await setting({ pages }, { preempt });
    const session = await set.start();
    const { qemu } = set;
    await qemu.until(() => qemu.kinds.includes("part") && (!preempt || qemu.connections === 2));
    const answers = preempt ? qemu.urgent : qemu.main;
    answers.pause();
    qemu.say(...range(0, pages).map((page) => requestOf(page, "ram0")));
    await turns(100);
    const { requests } = session.stats;
    expect(requests).toBeGreaterThan(0);
    // What it keeps for this child is a small share of what was asked for.
    expect(requests).toBeLessThan(1024);
    await turns();
    expect(session.stats.requests).toBe(requests);
    answers.resume();
    await qemu.until(() => qemu.pages.length === pages);
    expectPages(set, range(0, pages));
  });

  test.each([
    ["what is no message", Buffer.from("ffff0000", "hex")],
    ["a request outside of the block", requestOf(64, "ram0")],
    ["a request across the end of the block", requestOf(63, "ram0", 2)],
    ["a request for more than a page", requestOf(0, "ram0", 2)],
    ["a request for all of the block", requestOf(0, "ram0", 64)],
    ["a request far outside of a block that was not listed", requestOf(1 << 20, "pc.bios")],
    ["a message cut short", Buffer.from("000300080000", "hex")],
  ])("is given up when it says %s", async (_what, said) => {
    await using set = await setting({ pages: 64 }, { preempt });
    const session = await set.start();
    const { qemu } = set;
    await qemu.until(() => qemu.kinds.includes("part"));
    if (Buffer.isBuffer(said)) qemu.main.write(said);
    else qemu.say(said);
    expect(await session.ended).toMatchObject({ kind: "failed", error: { code: "STREAM_INVALID" } });
    await qemu.until(() => qemu.left);
    expect(qemu.pages).toEqual([]);
  });

  test("is given up when it asks for blocks without end that were not listed", async () => {
    await using set = await setting({ pages: 64 }, { preempt });
    const session = await set.start();
    const { qemu } = set;
    await qemu.until(() => qemu.kinds.includes("part"));
    // Reading what comes back would fail, as this QEMU does not have them.
    qemu.main.removeAllListeners("data");
    if (preempt) qemu.urgent.removeAllListeners("data");
    qemu.main.resume();
    let over = false;
    void session.ended.then(() => {
      over = true;
    });
    let asked = 0;
    for (; !over && asked < 1_000_000; asked += 100) {
      qemu.say(...range(asked, asked + 100).map((block) => requestOf(0, `rom-${block}`)));
      if (qemu.main.writableNeedDrain) await new Promise((resolve) => setTimeout(resolve, 1));
    }
    expect(await session.ended).toMatchObject({ kind: "failed", error: { code: "STREAM_INVALID" } });
    expect(session.stats.requests).toBe(0);
  });
});
