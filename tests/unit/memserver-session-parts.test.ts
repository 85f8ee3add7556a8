import { describe, expect, test } from "bun:test";
import { codeOf } from "../../errors/errors.ts";
import { Pacer } from "../../memserver/child/pacer.ts";
import { MAX_RUN_PAGES } from "../../memserver/child/page-channel.ts";
import { PageLedger, type PageRun, runsOf } from "../../memserver/child/page-ledger.ts";
import { Samples } from "../../memserver/child/samples.ts";
import { decodeWorkingSet, encodeWorkingSet, WorkingSetRecord } from "../../memserver/child/working-set.ts";
import { Dice } from "../support/dice.ts";

/** A clock that goes when it is told to. */
class Clock {
  ms = 1000;
  readonly now = () => this.ms;
}

describe("Pacer", () => {
  test("holds what is sent to the rate, over any longer time", () => {
    const clock = new Clock();
    const pacer = new Pacer(1_000_000, clock.now);
    const dice = new Dice(7);
    const began = clock.ms;
    let sent = 0;
    while (sent < 50_000_000) {
      const bytes = dice.int(1, 1_000_000);
      sent += bytes;
      clock.ms += pacer.sent(bytes);
      // What was sent may be ahead of the rate by a moment, and never behind what it says to wait for.
      expect(sent / 1000).toBeLessThanOrEqual(clock.ms - began + 10);
    }
    expect(clock.ms - began).toBeLessThan(sent / 1000 + 0.001);
  });

  test("does not make good for a pause", () => {
    const clock = new Clock();
    const pacer = new Pacer(1_000_000, clock.now);
    expect(pacer.sent(5000)).toBe(0);
    clock.ms += 60_000;
    expect(pacer.sent(10_000)).toBe(0);
    expect(pacer.sent(50_000)).toBeGreaterThan(40);
  });

  test("never waits without a limit", () => {
    const clock = new Clock();
    const pacer = new Pacer(Number.POSITIVE_INFINITY, clock.now);
    for (let time = 0; time < 10; time++) expect(pacer.sent(2 ** 40)).toBe(0);
  });
});

describe("PageLedger", () => {
  const zeros = new Set([4, 5, 90]);
  const source = { pages: 100, isZero: (page: number) => zeros.has(page) };

  function runs(ledger: PageLedger): PageRun[] {
    const found: PageRun[] = [];
    for (let run = ledger.nextOpen(0); run; run = ledger.nextOpen(run.page + run.count)) found.push(run);
    return found;
  }

  test("finds what is to be sent: no zero pages, nothing that is sent or awaited, in pieces", () => {
    const ledger = new PageLedger(source);
    expect(runs(ledger)).toEqual([
      { page: 0, count: 4 },
      { page: 6, count: MAX_RUN_PAGES },
      { page: 38, count: MAX_RUN_PAGES },
      { page: 70, count: 20 },
      { page: 91, count: 9 },
    ]);
    ledger.sent(0, 38);
    ledger.sent(71);
    ledger.await(99);
    expect(runs(ledger)).toEqual([
      { page: 38, count: MAX_RUN_PAGES },
      { page: 70, count: 1 },
      { page: 72, count: 18 },
      { page: 91, count: 8 },
    ]);
    ledger.sent(0, 100);
    expect(ledger.nextOpen(0)).toBeUndefined();
  });

  test("knows what is awaited until it is sent", () => {
    const ledger = new PageLedger(source);
    ledger.await(7);
    ledger.await(8);
    expect([ledger.awaited, ledger.isOpen(7), ledger.isOpen(9)]).toEqual([2, false, true]);
    ledger.sent(7);
    ledger.sent(7);
    expect(ledger.awaited).toBe(1);
    ledger.sent(0, 100);
    expect([ledger.awaited, ledger.isOpen(99)]).toEqual([0, false]);
  });

  test("takes over what the child has, bit by bit", () => {
    const ledger = new PageLedger(source);
    // 0x81: the first page of eight and the last one; QEMU pads to 64 bits.
    const bits = Buffer.alloc(16);
    bits[0] = 0x81;
    bits[12] = 0xff;
    ledger.received(bits);
    const had = Array.from({ length: 100 }, (_, page) => page).filter((page) => !ledger.isOpen(page));
    expect(had).toEqual([0, 7, 96, 97, 98, 99]);
  });
});

describe("runsOf()", () => {
  test("puts together what is adjacent, in the given order", () => {
    expect(runsOf([])).toEqual([]);
    expect(runsOf([5, 6, 7, 3, 4, 9, 8])).toEqual([
      { page: 5, count: 3 },
      { page: 3, count: 2 },
      { page: 9, count: 1 },
      { page: 8, count: 1 },
    ]);
    const many = Array.from({ length: 2 * MAX_RUN_PAGES + 1 }, (_, page) => page);
    expect(runsOf(many).map(({ count }) => count)).toEqual([MAX_RUN_PAGES, MAX_RUN_PAGES, 1]);
  });
});

describe("a working set", () => {
  test("is the same after a file", () => {
    for (const pages of [[], [0], [7, 3, 4_000_000, 9]]) {
      const bytes = encodeWorkingSet(Uint32Array.from(pages));
      expect(bytes.length).toBe(4 * pages.length);
      expect([...decodeWorkingSet(bytes, 4_000_001)]).toEqual(pages);
      // In the middle of a buffer too, wherever that begins.
      const at3 = Buffer.concat([Buffer.alloc(3), bytes]).subarray(3);
      expect([...decodeWorkingSet(at3, 4_000_001)]).toEqual(pages);
    }
  });

  test("is refused when it cannot be one, and never read as another", () => {
    const dice = new Dice(20090404);
    for (let round = 0; round < 2000; round++) {
      const bytes = Buffer.from(Array.from({ length: dice.int(0, 24) }, () => dice.pick([0, 1, 2, 255])));
      try {
        const pages = decodeWorkingSet(bytes, 600);
        expect(encodeWorkingSet(pages).equals(bytes)).toBe(true);
        expect(pages.every((page) => page < 600)).toBe(true);
        expect(new Set(pages).size).toBe(pages.length);
      } catch (error) {
        if (codeOf(error) !== "IMAGE_CORRUPT") throw error;
      }
    }
  });

  test("is a tenth of the image at most", () => {
    const record = new WorkingSetRecord(30);
    for (const page of [5, 1, 29, 7]) record.add(page);
    expect([...record.pages]).toEqual([5, 1, 29]);
    const none = new WorkingSetRecord(5);
    none.add(1);
    expect([...none.pages]).toEqual([]);
  });
});

describe("Samples", () => {
  test("keeps the last ones", () => {
    const samples = new Samples(3);
    expect(samples.values).toEqual([]);
    for (const value of [1, 2]) samples.add(value);
    expect(samples.values).toEqual([1, 2]);
    for (const value of [3, 4, 5]) samples.add(value);
    expect(samples.values.sort()).toEqual([3, 4, 5]);
  });
});
