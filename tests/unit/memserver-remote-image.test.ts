import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setImmediate as nextTurn } from "node:timers/promises";
import { BulkSlots } from "../../memserver/image/bulk-slots.ts";
import { RemoteImage, type RemoteImageOptions } from "../../memserver/image/remote-image.ts";
import { SparseImage } from "../../memserver/image/sparse-image.ts";
import { PAGE_BYTES } from "../../memserver/stream/format.ts";
import { rejection } from "../support/agent-peer.ts";
import { pagesOf } from "../support/memserver-pages.ts";
import { MadeUpImage, madeUpImage } from "../support/memserver-peers.ts";
import { Gate, ScriptedHolder } from "../support/scripted-holder.ts";
import { type TemporaryDirectory, temporaryDirectory } from "../support/vm.ts";

/** No zero pages: page n of requests is page n of answers. */
const full = new MadeUpImage(pagesOf(0, 1024));
const mixed = madeUpImage(2048);
let directory: TemporaryDirectory;

beforeEach(() => {
  directory = temporaryDirectory();
});

afterEach(() => directory[Symbol.dispose]());

function localOf(image: MadeUpImage): SparseImage {
  return SparseImage.open(join(directory.path, "memory"), image.pages);
}

function remote(
  image: MadeUpImage,
  holders: ScriptedHolder[],
  options: Partial<RemoteImageOptions> = {},
): RemoteImage {
  const local = "local" in options ? options.local : localOf(image);
  return new RemoteImage({
    ...{ name: "abc", table: image.table, holders, readAhead: 1, giveUpMs: 20_000 },
    ...options,
    local,
  });
}

function readPages(image: RemoteImage, page: number, count: number): Buffer | undefined {
  const target = Buffer.alloc(count * PAGE_BYTES + 2, 0xaa);
  if (!image.read(page, count, target, 1)) return undefined;
  expect([target[0], target.at(-1)]).toEqual([0xaa, 0xaa]);
  return target.subarray(1, -1);
}

function expectPages(image: RemoteImage, of: MadeUpImage, page: number, count: number): void {
  const expected = of.bytes.subarray(page * PAGE_BYTES, (page + count) * PAGE_BYTES);
  expect(readPages(image, page, count)?.equals(expected)).toBe(true);
}

/** Waits, however long that takes, until what happens in other turns has come so far. */
async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await nextTurn();
}

/** Lets everything happen that needs no time. */
async function settle(): Promise<void> {
  for (let turn = 0; turn < 20; turn++) await nextTurn();
}

function noSpace(local: SparseImage): SparseImage {
  local.write = () => {
    throw Object.assign(new Error("ENOSPC: no space left on device, write"), { code: "ENOSPC" });
  };
  return local;
}

describe("RemoteImage.read()", () => {
  test("gives zero pages without anybody, and no others", async () => {
    await using image = remote(mixed, []);
    const zero = Array.from({ length: mixed.pages }, (_value, page) => page).find(
      (page) => mixed.table.isZero(page) && mixed.table.isZero(page + 1),
    )!;
    expectPages(image, mixed, zero, 2);
    expect(image.isZero(zero)).toBe(true);
    expect(readPages(image, mixed.filled[0]!, 1)).toBeUndefined();
    expect(readPages(image, 0, mixed.pages)).toBeUndefined();
  });

  test("gives what was fetched, with zero pages between", async () => {
    const holder = new ScriptedHolder("a", mixed);
    await using image = remote(mixed, [holder]);
    await image.fetch(100, 700);
    expectPages(image, mixed, 100, 700);
    expect(readPages(image, 100, 1900)).toBeUndefined();
  });
});

describe("RemoteImage.fetch()", () => {
  test("asks for no page twice, however many want it at once", async () => {
    const gate = new Gate();
    const holder = new ScriptedHolder("a", full, async ({ first, count }) => {
      await gate.opened;
      return full.range(first, count);
    });
    await using image = remote(full, [holder], { readAhead: 16 });
    const wanted = Array.from({ length: 16 }, (_value, at) =>
      Array.from({ length: 40 }, (_page, step) =>
        image.fetch(step * 3, 5, { urgent: (at + step) % 2 === 0 }),
      ),
    );
    await settle();
    gate.open();
    await Promise.all(wanted.flat());
    const asked = holder.asked(full);
    expect(asked.length).toBe(new Set(asked).size);
    expect(image.stats.fetchedPages).toBe(asked.length);
    expect(image.stats.fetchedBytes).toBe(asked.length * PAGE_BYTES);
    expectPages(image, full, 0, 122);
    await image.fetch(0, 122);
    expect(holder.asked(full)).toEqual(asked);
  });

  test("asks for at most 256 pages at once", async () => {
    const holder = new ScriptedHolder("a", full);
    await using image = remote(full, [holder]);
    await image.fetch(3, 1000);
    expect(holder.requests.map(({ first, count }) => [first, count])).toEqual([
      [3, 256],
      [259, 256],
      [515, 256],
      [771, 232],
    ]);
    expect(holder.requests.some(({ urgent }) => urgent)).toBe(false);
  });

  test("asks for a page that is waited for before those around it", async () => {
    const holder = new ScriptedHolder("a", full);
    await using image = remote(full, [holder], { readAhead: 16 });
    await image.fetch(37, 1, { urgent: true });
    expect(holder.requests).toEqual([
      { first: 37, count: 1, urgent: true },
      { first: 38, count: 10, urgent: true },
      { first: 32, count: 5, urgent: true },
    ]);
    await image.fetch(32, 16, { urgent: true });
    expect(holder.requests).toHaveLength(3);
    expect(image.stats.urgentFetches).toBe(2);
  });

  test("reads ahead no further than the image goes", async () => {
    const small = new MadeUpImage(pagesOf(0, 5));
    const holder = new ScriptedHolder("a", small);
    await using image = remote(small, [holder], { readAhead: 16 });
    await image.fetch(4, 1, { urgent: true });
    await image.fetch(0, 5, { urgent: true });
    expect(image.complete).toBe(true);
  });

  test("has no zero pages at the ends of what it asks for", async () => {
    const holder = new ScriptedHolder("a", mixed);
    await using image = remote(mixed, [holder]);
    await image.fetch(0, mixed.pages);
    for (const { first, count } of holder.requests) {
      expect(mixed.table.isZero(first) || mixed.table.isZero(first + count - 1)).toBe(false);
    }
  });

  test("puts an urgent page before any number of others that wait", async () => {
    const gate = new Gate();
    const holder = new ScriptedHolder("a", full, async ({ first, count, urgent }) => {
      if (!urgent) await gate.opened;
      return full.range(first, count);
    });
    await using image = remote(full, [holder]);
    const bulk = [image.fetch(0, 512), image.fetch(512, 500), image.fetch(0, 1000)];
    await settle();
    // The second waits for room: an urgent page of it does not.
    await image.fetch(1023, 1, { urgent: true });
    expectPages(image, full, 1023, 1);
    const joined = image.fetch(5, 1, { urgent: true });
    await settle();
    expect(readPages(image, 5, 1)).toBeUndefined();
    gate.open();
    await joined;
    await Promise.all(bulk);
    expect(holder.asked(full)).toHaveLength(new Set(holder.asked(full)).size);
  });

  test("begins no more than one bulk request while an urgent one is on its way", async () => {
    const gates = { urgent: new Gate(), bulk: new Gate() };
    const holder = new ScriptedHolder("a", full, async ({ first, count, urgent }) => {
      await (urgent ? gates.urgent : gates.bulk).opened;
      return full.range(first, count);
    });
    await using image = remote(full, [holder]);
    const urgent = image.fetch(1000, 1, { urgent: true });
    const bulk = image.prefetch([]);
    await settle();
    expect(holder.requests.map(({ first, urgent }) => [first, urgent])).toEqual([
      [1000, true],
      [0, false],
    ]);
    gates.urgent.open();
    await urgent;
    await settle();
    expect(holder.requests.length).toBeGreaterThan(3);
    gates.bulk.open();
    await bulk;
  });

  test("is done when its own pages are here, not those around them", async () => {
    const never = new Gate();
    const holder = new ScriptedHolder("a", full, async ({ first, count }, signal) => {
      if (count > 1) await Promise.race([never.opened, aborted(signal)]);
      return full.range(first, count);
    });
    await using image = remote(full, [holder], { readAhead: 16 });
    await image.fetch(7, 1, { urgent: true });
    expectPages(image, full, 7, 1);
  });

  test.each([
    [-1, 1],
    [0, -1],
    [1024, 1],
    [1000, 25],
    [Number.NaN, 1],
  ])("refuses pages %d and %d more, which the image does not have", async (page, count) => {
    await using image = remote(full, [new ScriptedHolder("a", full)]);
    expect((await rejection(image.fetch(page, count))).code).toBe("BAD_ARGUMENT");
  });

  test("ends at an abort, while others get the pages", async () => {
    const gate = new Gate();
    const holder = new ScriptedHolder("a", full, async ({ first, count }) => {
      await gate.opened;
      return full.range(first, count);
    });
    await using image = remote(full, [holder]);
    const abort = new AbortController();
    const given = image.fetch(0, 300, { signal: abort.signal });
    const urgent = image.fetch(0, 1, { urgent: true, signal: abort.signal });
    const other = image.fetch(0, 300);
    await settle();
    abort.abort();
    for (const one of [given, urgent]) expect((await rejection(one)).code).toBe("ABORTED");
    expect((await rejection(image.fetch(0, 1, { signal: AbortSignal.abort() }))).code).toBe("ABORTED");
    gate.open();
    await other;
    expect(holder.asked(full)).toHaveLength(300);
  });

  test("gives back the room of a bulk request that was aborted before it began", async () => {
    const gate = new Gate();
    const holder = new ScriptedHolder("a", full, async ({ first, count }) => {
      await gate.opened;
      return full.range(first, count);
    });
    await using image = remote(full, [holder]);
    const urgent = image.fetch(1023, 1, { urgent: true });
    const first = image.fetch(0, 1);
    await settle();
    const abort = new AbortController();
    const waiting = Array.from({ length: 50 }, (_value, at) =>
      image.fetch(at + 1, 1, { signal: abort.signal }),
    );
    await settle();
    abort.abort();
    for (const one of waiting) expect((await rejection(one)).code).toBe("ABORTED");
    gate.open();
    await Promise.all([urgent, first]);
    await image.prefetch([]);
    expect(image.complete).toBe(true);
  });
});

describe("a holder of a RemoteImage", () => {
  const wrong: [string, (first: number, count: number) => Buffer, string][] = [
    ["a damaged page", (first, count) => damaged(full.range(first, count)), "a wrong page 12"],
    ["too few bytes", (first, count) => full.range(first, count).subarray(1), "a wrong page 10"],
    ["too few pages", (first, count) => full.range(first, count - 1), "12288 bytes, which is too little"],
    ["too many pages", (first, count) => full.range(first, count + 1), "20480 bytes instead of 16384"],
    ["no bytes", () => Buffer.alloc(0), "0 bytes, which is too little"],
    ["pages in another order", (first, count) => reversed(full.range(first, count)), "a wrong page 10"],
    [
      "a page twice",
      (first) => Buffer.concat([full.range(first, 1), full.range(first, 3)]),
      "a wrong page 11",
    ],
    ["other pages of the image", (first, count) => full.range(first + 1, count), "a wrong page 10"],
    ["zeros", (_first, count) => Buffer.alloc(count * PAGE_BYTES), "a wrong page 10"],
  ];

  test.each(wrong)("is set aside for good when it sends %s", async (_name, answer, reason) => {
    const bad = new ScriptedHolder("bad", full, ({ first, count }) => answer(first, count));
    const good = new ScriptedHolder("good", full);
    await using image = remote(full, [bad, good]);
    await image.fetch(10, 4, { urgent: true });
    expectPages(image, full, 10, 4);
    await image.fetch(100, 4, { urgent: true });
    expect([bad.requests.length, good.requests.length]).toEqual([1, 2]);
    expect(image.stats).toMatchObject({ badAnswers: 1, holderFailures: 0, fetchedPages: 8 });
    await image[Symbol.asyncDispose]();

    await using alone = remote(full, [bad], { local: undefined });
    const error = await rejection(alone.fetch(10, 4, { urgent: true }));
    expect(error.code).toBe("PAGES_UNAVAILABLE");
    expect(error.message).toBe(
      `Cannot get pages 10 to 13 of image abc: bad: it was set aside, since it sent ${reason}`,
    );
    expect(readPages(alone, 10, 4)).toBeUndefined();
  });

  test("that has not the pages is asked again for others", async () => {
    const some = new ScriptedHolder("some", full, ({ first, count }) =>
      first < 100 ? full.range(first, count) : undefined,
    );
    const all = new ScriptedHolder("all", full);
    await using image = remote(full, [some, all]);
    for (const page of [200, 50, 201, 51]) await image.fetch(page, 1, { urgent: true });
    expect(some.requests).toHaveLength(4);
    expect(all.requests.map(({ first }) => first)).toEqual([200, 201]);
    expect(image.stats).toMatchObject({ badAnswers: 0, holderFailures: 0 });
  });

  test("may have some of the pages, and others the rest", async () => {
    const having = (part: number) =>
      new ScriptedHolder(`part ${part}`, full, ({ first, count }) =>
        Array.from({ length: count }, (_value, at) => first + at).every((page) => page % 3 === part)
          ? full.range(first, count)
          : undefined,
      );
    const holders = [having(0), having(1), having(2)];
    await using image = remote(full, holders);
    await Promise.all([image.fetch(0, 64), image.fetch(7, 1, { urgent: true }), image.fetch(60, 30)]);
    expectPages(image, full, 0, 90);
    expect(image.stats.fetchedPages).toBe(90);
    await image.prefetch([]);
    expect(image.complete).toBe(true);
    expect(image.stats.fetchedPages).toBe(1024);
  });

  test("that fails is left alone, and another asked", async () => {
    const failing = new ScriptedHolder("failing", full, () => {
      throw new Error("connection refused");
    });
    const good = new ScriptedHolder("good", full);
    await using image = remote(full, [failing, good]);
    for (let page = 0; page < 50; page++) await image.fetch(page, 1, { urgent: true });
    expect(failing.requests.length).toBeLessThan(10);
    expect(image.stats.holderFailures).toBe(failing.requests.length);
    expect(good.requests).toHaveLength(50);
  });

  test("that failed is asked again when there is no other, and then as before", async () => {
    let failures = 3;
    const flaky = new ScriptedHolder("flaky", full, ({ first, count }) => {
      if (failures-- > 0) throw new Error("connection refused");
      return full.range(first, count);
    });
    await using image = remote(full, [flaky]);
    await image.fetch(0, 4, { urgent: true });
    expectPages(image, full, 0, 4);
    expect(flaky.requests).toHaveLength(4);
    expect(image.stats).toMatchObject({ holderFailures: 3, fetchedPages: 4 });
  });

  test("that never answers is given up in time for the next", async () => {
    const silent = new ScriptedHolder("silent", full, () => new Promise(() => undefined));
    const good = new ScriptedHolder("good", full);
    await using image = remote(full, [silent, good], { giveUpMs: 400 });
    await image.fetch(0, 1, { urgent: true });
    expectPages(image, full, 0, 1);
    expect(image.stats.holderFailures).toBe(1);
  });

  test("that gives no page makes a fetch fail with its reason, and the next try anew", async () => {
    const broken = { now: true };
    const refusing = new ScriptedHolder("a", full, ({ first, count }) => {
      if (broken.now) throw new Error("connection refused");
      return full.range(first, count);
    });
    const lacking = new ScriptedHolder("b", full, () => undefined);
    const silent = new ScriptedHolder("c", full, () => new Promise(() => undefined));
    await using image = remote(full, [refusing, lacking, silent], { giveUpMs: 300 });
    const error = await rejection(image.fetch(17, 1, { urgent: true }));
    expect(error.code).toBe("PAGES_UNAVAILABLE");
    expect(error.message).toMatch(
      /^Cannot get page 17 of image abc: a: connection refused; b: it has not all of page 17; c: no answer in \d+ ms$/,
    );
    expect(readPages(image, 17, 1)).toBeUndefined();
    broken.now = false;
    await image.fetch(17, 1, { urgent: true });
    expectPages(image, full, 17, 1);
  });

  test("is needed", async () => {
    await using image = remote(full, [], { giveUpMs: 100 });
    const error = await rejection(image.fetch(0, 1));
    expect(error.message).toBe("Cannot get page 0 of image abc: it has no holders");
  });

  test("gives nothing any more once it was given up", async () => {
    const late = Promise.withResolvers<Buffer>();
    const slow = new ScriptedHolder("slow", full, () => late.promise);
    await using image = remote(full, [slow], { giveUpMs: 50 });
    expect((await rejection(image.fetch(0, 1))).code).toBe("PAGES_UNAVAILABLE");
    late.resolve(full.range(0, 1));
    await settle();
    expect(readPages(image, 0, 1)).toBeUndefined();
  });
});

describe("RemoteImage.prefetch()", () => {
  test("brings all pages, each once, and tells so once", async () => {
    const holder = new ScriptedHolder("a", mixed);
    let completed = 0;
    await using image = remote(mixed, [holder], { onComplete: () => completed++ });
    expect(image.complete).toBe(false);
    await Promise.all([image.prefetch([]), image.fetch(500, 10, { urgent: true }), image.prefetch([])]);
    expect([image.complete, completed]).toEqual([true, 1]);
    expect(holder.asked(mixed).toSorted((a, b) => a - b)).toEqual(mixed.filled);
    expectPages(image, mixed, 0, mixed.pages);
    await image.prefetch([]);
    await image.fetch(0, mixed.pages);
    expect([holder.asked(mixed).length, completed]).toEqual([mixed.filled.length, 1]);
  });

  test("goes on from what an earlier image has brought", async () => {
    const first = remote(mixed, [new ScriptedHolder("a", mixed)]);
    await first.fetch(0, 1000);
    await first[Symbol.asyncDispose]();
    const holder = new ScriptedHolder("a", mixed);
    const second = remote(mixed, [holder]);
    await second.prefetch([]);
    expect(holder.asked(mixed)).toEqual(mixed.filled.filter((page) => page >= 1000));
    await second[Symbol.asyncDispose]();
    let completed = 0;
    await using third = remote(mixed, [], { onComplete: () => completed++ });
    // Not before it was checked.
    expect([third.complete, completed]).toEqual([false, 0]);
    await Promise.all([third.prefetch(), third.prefetch()]);
    expect([third.complete, completed]).toEqual([true, 1]);
    expectPages(third, mixed, 0, mixed.pages);
  });

  test("brings again what a loss of power has left as zeros, or anything else", async () => {
    const first = remote(full, [new ScriptedHolder("a", full)]);
    await first.prefetch();
    await first[Symbol.asyncDispose]();
    const path = join(directory.path, "memory");
    const bytes = readFileSync(path);
    for (const page of [0, 1, 500, 1023]) bytes.fill(page, page * PAGE_BYTES, page * PAGE_BYTES + 1 + page);
    bytes.fill(0, 700 * PAGE_BYTES, 704 * PAGE_BYTES);
    writeFileSync(path, bytes);

    const holder = new ScriptedHolder("a", full);
    let completed = 0;
    await using second = remote(full, [holder], { onComplete: () => completed++ });
    expect(readPages(second, 701, 1)).toBeUndefined();
    expect(readPages(second, 498, 4)).toBeUndefined();
    expectPages(second, full, 501, 100);
    await second.fetch(702, 1, { urgent: true });
    expectPages(second, full, 702, 1);
    await second.prefetch();
    expect(completed).toBe(1);
    expectPages(second, full, 0, 1024);
    const asked = holder.asked(full).toSorted((a, b) => a - b);
    expect(asked).toEqual([0, 1, 500, 700, 701, 702, 703, 1023]);
    await second[Symbol.asyncDispose]();
    expect(readFileSync(path).equals(full.bytes)).toBe(true);
  });

  test("shares the room on its network with other images", async () => {
    const gate = new Gate();
    const holder = new ScriptedHolder("a", full, async ({ first, count }) => {
      await gate.opened;
      return full.range(first, count);
    });
    const slots = new BulkSlots();
    const closed = remote(full, [holder], { slots, local: undefined });
    const images = Array.from({ length: 5 }, (_value, at) =>
      remote(full, [holder], { slots, local: SparseImage.open(join(directory.path, `${at}`), full.pages) }),
    );
    const all = Promise.all(images.map((image) => image.prefetch()));
    await settle();
    expect(holder.requests).toHaveLength(4);
    // One that is closed waits for none.
    const waiting = rejection(closed.fetch(0, 1));
    await settle();
    await closed[Symbol.asyncDispose]();
    expect((await waiting).message).toBe("Cannot get pages: the image was closed");
    gate.open();
    await all;
    expect(holder.requests).toHaveLength(5 * 4);
    for (const image of images) await image[Symbol.asyncDispose]();
  });

  test("brings the given pages first, in order, and minds no others", async () => {
    const holder = new ScriptedHolder("a", full);
    await using image = remote(full, [holder]);
    await image.prefetch(Uint32Array.of(700, 5, 6, 7, 0xffff_ffff, 9, 1024, 700, 6));
    expect(holder.requests.slice(0, 4).map(({ first, count }) => [first, count])).toEqual([
      [700, 1],
      [5, 3],
      [9, 1],
      [0, 5],
    ]);
    expect(holder.asked(full)).toHaveLength(1024);
  });

  test("keeps to a pace", async () => {
    const holder = new ScriptedHolder("a", full);
    await using image = remote(full, [holder]);
    const begun = performance.now();
    await image.prefetch([], { bytesPerSecond: 16 * 1024 * 1024 });
    // The last of the requests, of a 16th of a second, need not be waited for.
    expect(performance.now() - begun).toBeGreaterThan(1000 * (4 / 16 - 1 / 16) - 1);
    expect(Math.max(...holder.requests.map(({ count }) => count))).toBe(256);
    await image[Symbol.asyncDispose]();
    const slow = remote(full, [holder], { local: SparseImage.open(join(directory.path, "slow"), 1024) });
    holder.requests.length = 0;
    const abort = new AbortController();
    const fetching = slow.prefetch([], { bytesPerSecond: 1, signal: abort.signal });
    await until(() => slow.stats.fetchedPages > 0);
    await settle();
    expect(holder.requests).toEqual([{ first: 0, count: 1, urgent: false }]);
    abort.abort();
    expect((await rejection(fetching)).code).toBe("ABORTED");
    await slow[Symbol.asyncDispose]();
  });

  test("fails when pages are not to be had, and can be called again", async () => {
    const broken = { now: true };
    const holder = new ScriptedHolder("a", full, ({ first, count }) => {
      if (broken.now && first >= 512) throw new Error("connection refused");
      return full.range(first, count);
    });
    await using image = remote(full, [holder], { giveUpMs: 100 });
    expect((await rejection(image.prefetch([]))).code).toBe("PAGES_UNAVAILABLE");
    broken.now = false;
    await image.prefetch([]);
    expect(image.complete).toBe(true);
  });

  test("fails at once when there is nobody left to ask", async () => {
    const liar = new ScriptedHolder("liar", full, ({ count }) => Buffer.alloc(count * PAGE_BYTES));
    await using image = remote(full, [liar]);
    for (let round = 0; round < 3; round++) {
      expect((await rejection(image.prefetch())).message).toContain("liar: it was set aside");
      expect((await rejection(image.fetch(0, 700))).message).toContain("liar: it was set aside");
      expect((await rejection(image.fetch(0, 7, { urgent: true }))).message).toContain("set aside");
    }
    expect(image.stats.fetchedPages).toBe(0);
  });

  test("fails when nobody has some page, though it was asked for in halves", async () => {
    const holder = new ScriptedHolder("a", full, ({ first, count }) =>
      first <= 300 && 300 < first + count ? undefined : full.range(first, count),
    );
    await using image = remote(full, [holder], { giveUpMs: 200 });
    const error = await rejection(image.prefetch([]));
    expect(error.message).toBe("Cannot get page 300 of image abc: a: it has not all of page 300");
    expect(image.stats.fetchedPages).toBe(1023);
  });
});

describe("RemoteImage without room", () => {
  test("tells so once, and still gives what was fetched", async () => {
    const told: unknown[] = [];
    const local = noSpace(localOf(full));
    const options = { local, memoryBytes: 8 * PAGE_BYTES, onDegraded: (error: unknown) => told.push(error) };
    await using image = remote(full, [new ScriptedHolder("a", full)], options);
    for (let page = 0; page < 64; page++) {
      await image.fetch(page, 8, { urgent: true });
      expectPages(image, full, page, 8);
    }
    expect(told).toEqual([expect.objectContaining({ code: "ENOSPC" })]);
    expect(image.complete).toBe(false);
    await settle();
    expect(readPages(image, 0, 1)).toBeUndefined();
  });

  test("still gives what the local image has", async () => {
    const local = localOf(full);
    await using image = remote(full, [new ScriptedHolder("a", full)], { local, memoryBytes: PAGE_BYTES });
    await image.fetch(0, 100);
    noSpace(local);
    await image.fetch(100, 1);
    await image.fetch(101, 1);
    expectPages(image, full, 0, 100);
    expectPages(image, full, 101, 1);
  });

  test("keeps pages that are wanted, however many others come, until they can be read", async () => {
    const options = { local: undefined, memoryBytes: 4 * PAGE_BYTES };
    await using image = remote(full, [new ScriptedHolder("a", full)], options);
    const readers = Array.from({ length: 64 }, async (_value, at) => {
      await image.fetch(at * 4, 4, { urgent: at % 2 === 0 });
      expectPages(image, full, at * 4, 4);
    });
    await Promise.all(readers);
    await settle();
    const left = Array.from({ length: 256 }, (_value, page) => page).filter((page) =>
      readPages(image, page, 1),
    );
    expect(left.length).toBe(4);
  });

  test("keeps those that were used last", async () => {
    const options = { local: undefined, memoryBytes: 3 * PAGE_BYTES };
    await using image = remote(full, [new ScriptedHolder("a", full)], options);
    for (const page of [1, 2, 3]) await image.fetch(page, 1);
    await settle();
    expectPages(image, full, 1, 1);
    await image.fetch(4, 1);
    await settle();
    expect([1, 2, 3, 4].filter((page) => readPages(image, page, 1))).toEqual([1, 3, 4]);
  });

  test("refuses to bring more at once than it can hold", async () => {
    const options = { local: undefined, memoryBytes: 8 * PAGE_BYTES };
    const holder = new ScriptedHolder("a", full);
    await using image = remote(full, [holder], options);
    const error = await rejection(image.fetch(0, 9));
    expect(error.code).toBe("PAGES_UNAVAILABLE");
    expect(holder.requests).toEqual([]);
  });

  test("does not bring in advance what it cannot keep", async () => {
    const holder = new ScriptedHolder("a", full);
    await using image = remote(full, [holder], { local: noSpace(localOf(full)) });
    await image.prefetch([]);
    expect(image.complete).toBe(false);
    const asked = holder.requests.length;
    expect(asked).toBeLessThanOrEqual(5);
    await image.prefetch([]);
    expect(holder.requests).toHaveLength(asked);
  });
});

describe("RemoteImage", () => {
  test("refuses a local image of another size", async () => {
    using local = SparseImage.open(join(directory.path, "other"), 7);
    expect(() => remote(full, [], { local })).toThrow(`"${local.path}" has 7 pages, and its table 1024`);
  });

  test("has fetches fail when it is closed, and closes its local image", async () => {
    const holder = new ScriptedHolder("a", full, (_request, signal) => aborted(signal));
    const local = localOf(full);
    const image = remote(full, [holder], { local });
    const fetches = [
      rejection(image.fetch(0, 1, { urgent: true })),
      rejection(image.fetch(0, 1024)),
      rejection(image.prefetch([1, 2, 3])),
    ];
    await settle();
    await image[Symbol.asyncDispose]();
    for (const error of await Promise.all(fetches)) {
      expect(error.code).toBe("PAGES_UNAVAILABLE");
      expect(error.message).toContain("the image was closed");
    }
    expect((await rejection(image.fetch(1, 1))).code).toBe("PAGES_UNAVAILABLE");
    expect(() => local.write(0, full.page(0))).toThrow(/bad file descriptor/i);
  });
});

/** Rejects when the signal says so. */
function aborted(signal: AbortSignal): Promise<never> {
  return new Promise((_resolve, reject) => {
    signal.addEventListener("abort", () => reject(signal.reason), { once: true });
  });
}

function damaged(bytes: Buffer): Buffer {
  const copy = Buffer.from(bytes);
  copy[2 * PAGE_BYTES + 7]! ^= 1;
  return copy;
}

function reversed(bytes: Buffer): Buffer {
  const pages: Buffer[] = [];
  for (let at = 0; at < bytes.length; at += PAGE_BYTES) pages.unshift(bytes.subarray(at, at + PAGE_BYTES));
  return Buffer.concat(pages);
}
