import { afterAll, afterEach, beforeAll, describe, expect, test } from "bun:test";
import { existsSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { decodeWorkingSet } from "../../memserver/child/working-set.ts";
import { ENTRY_BYTES, PageTable } from "../../memserver/image/page-table.ts";
import type { Child } from "../../runtime/fork/child.ts";
import type { LazyOptions } from "../../runtime/fork/lazy-memory.ts";
import type { Parent } from "../../runtime/fork/parent.ts";
import { Host } from "../../runtime/vm/host.ts";
import { rejection } from "../support/agent-peer.ts";
import { Dice } from "../support/dice.ts";
import {
  checkedParent,
  checkMixed,
  differingPages,
  lazyParent,
  MIXED_RIGHT,
  type OwnImage,
  ownImage,
  SUM_RIGHT,
  sum,
  touch,
  WatchedMemserver,
} from "../support/memserver-lazy.ts";
import { PausedChild } from "../support/memserver-paused.ts";
import { descriptorsAfter } from "../support/memserver-traces.ts";
import {
  NO_TRACES,
  openDescriptors,
  SETUP_MS,
  stopProcess,
  TEST_MS,
  type TemporaryDirectory,
  temporaryDirectory,
  tracesOf,
} from "../support/vm.ts";

const SEED = 20090404;
const MIB = 1024 * 1024;
const FAST = Number.POSITIVE_INFINITY;
/** Children that read while they become complete. */
const ROUNDS = 8;
const FAMILY = 32;
/** Milliseconds in which the background never begins. */
const NEVER_MS = 1e8;

let host: Host;
let parent: Parent;
let image: OwnImage;
let keys: TemporaryDirectory;
let memserver: WatchedMemserver;
let before: string[];

beforeAll(async () => {
  host = await Host.open();
  parent = await checkedParent(host);
  image = ownImage(parent);
  keys = temporaryDirectory();
  before = openDescriptors();
  memserver = new WatchedMemserver({ host, keys: keys.path });
  await memserver.open(image.hash, image.dir);
}, SETUP_MS);

afterEach(async () => {
  const pid = await memserver.pid();
  expect(tracesOf(host)).toEqual({ ...NO_TRACES, processes: pid === undefined ? [] : [pid] });
});

afterAll(async () => {
  // All of it was the work of one memserver, which nothing has brought to its end.
  expect(memserver.starts).toBe(1);
  await memserver[Symbol.asyncDispose]();
  expect(tracesOf(host)).toEqual(NO_TRACES);
  expect(await descriptorsAfter(before)).toEqual(before);
  image[Symbol.dispose]();
  keys[Symbol.dispose]();
  await parent[Symbol.asyncDispose]();
  await host[Symbol.asyncDispose]();
});

function lazy(options: LazyOptions = {}): Parent {
  return lazyParent(parent, host, memserver, image, { workingSet: false, ...options });
}

/** One child of a parent of its own. */
async function fork(options: LazyOptions = {}): Promise<Child> {
  await using own = lazy(options);
  return await own.fork({ identity: { index: 0, hostname: "lazy" } });
}

describe.each([
  ["with a second connection", true],
  ["with one connection", false],
])("the memory of a child that stands still, %s", (_name, preempt) => {
  test.each([
    ["as fast as it takes it", {}],
    ["with a working set", { workingSet: someWorkingSet() }],
    ["with what it asks for measured", { measure: true }],
  ])(
    "is the image, page by page, when it comes %s",
    async (_how, changes) => {
      await using child = await PausedChild.start({ host, parent, image, preempt, ...changes });
      expect(await child.session.ended).toEqual({ kind: "complete" });
      expect(differingPages(child.pid, image.table)).toEqual([]);
      // The comparison is one: in the memory of another VM there would be something to be found.
      const other = Buffer.from(image.table.bytes);
      other[ENTRY_BYTES * 20_000] = other[ENTRY_BYTES * 20_000]! ^ 1;
      expect(differingPages(child.pid, new PageTable(other))).toEqual([20_000]);
    },
    TEST_MS,
  );

  test(
    "is the image, page by page, when its connection breaks over and over",
    async () => {
      const background = { afterMs: 0, bytesPerSecond: 200e6 };
      await using child = await PausedChild.start({ host, parent, image, preempt, background });
      const shares = [0, 0.01, 0.2, 0.5, 0.51, 0.8, 0.95];
      for (const share of shares) await child.breakAt(share);
      expect(await child.session.ended).toEqual({ kind: "complete" });
      expect(child.breaks).toBe(shares.length);
      expect(differingPages(child.pid, image.table)).toEqual([]);
    },
    TEST_MS,
  );
});

describe.each([
  ["with a second connection", true],
  ["with one connection", false],
])("a child that works, %s", (_name, preempt) => {
  const modes: [string, LazyOptions][] = [
    ["at once", { backgroundAfterMs: 0, backgroundBytesPerSecond: FAST }],
    ["slowly", { backgroundAfterMs: 50, backgroundBytesPerSecond: 40 * MIB }],
    ["never", { backgroundAfterMs: NEVER_MS }],
  ];
  test.each(modes)(
    "reads what its parent had when it is given unasked %s",
    async (_when, options) => {
      await using child = await fork({ preempt, ...options });
      expect(await touch(child, 3000, 1)).toMatchObject({ count: 3000, wrong: 0 });
      expect(await checkMixed(child, 2)).toEqual(MIXED_RIGHT);
      expect(await sum(child)).toEqual(SUM_RIGHT);
      const { requests, pushed } = await memserver.stats(child.id);
      if (options.backgroundAfterMs === NEVER_MS) {
        // All that it has read it has asked for.
        expect(requests).toBeGreaterThan(SUM_RIGHT.pages + MIXED_RIGHT.pages);
        expect(pushed).toBe(0);
      } else {
        expect(pushed).toBeGreaterThan(0);
        await memserver.complete(child);
        expect(await sum(child)).toEqual(SUM_RIGHT);
      }
    },
    TEST_MS,
  );

  test(
    "reads no page of zeros as another, and no other page as zeros, when it becomes complete meanwhile",
    async () => {
      const dice = new Dice(SEED);
      let meanwhile = 0;
      for (let round = 0; round < ROUNDS; round++) {
        const backgroundAfterMs = dice.pick([0, 200, 300]);
        const backgroundBytesPerSecond = dice.pick([FAST, 300 * MIB, 150 * MIB]);
        await using child = await fork({ preempt, backgroundAfterMs, backgroundBytesPerSecond });
        const seed = dice.int(0, 1e9);
        const began = memserver.isComplete(child);
        const reading = Promise.all([checkMixed(child, seed), touch(child, SUM_RIGHT.pages, seed)]);
        expect(await reading).toMatchObject([MIXED_RIGHT, { count: SUM_RIGHT.pages, wrong: 0 }]);
        if (!began && memserver.isComplete(child)) meanwhile += 1;
        await memserver.complete(child);
        expect(await checkMixed(child, seed + 1)).toEqual(MIXED_RIGHT);
        expect(await sum(child)).toEqual(SUM_RIGHT);
      }
      expect(meanwhile).toBeGreaterThan(ROUNDS / 4);
    },
    TEST_MS,
  );
});

describe("the working set", () => {
  const file = () => join(image.dir, "working-set");
  /** Milliseconds that the first child shows what it needs; those that follow have it at once. */
  const options: LazyOptions = { workingSet: true, backgroundAfterMs: 500 };

  /** What a child does that all of them do. */
  async function work(child: Child): Promise<void> {
    expect(await touch(child, 1000, 9)).toMatchObject({ wrong: 0 });
  }

  /** A memserver that has not seen a child yet. */
  async function another(): Promise<WatchedMemserver> {
    await using stack = new AsyncDisposableStack();
    const own = stack.use(new WatchedMemserver({ host, keys: keys.path }));
    await own.open(image.hash, image.dir);
    stack.move();
    return own;
  }

  test(
    "of a child that was not proven, or is dead, is not kept",
    async () => {
      rmSync(file(), { force: true });
      await using own = lazy(options);
      const identity = { index: 0, hostname: "unproven" };
      // It has its state, and no time to answer.
      expect((await rejection(own.fork({ identity, timeoutMs: 1 }))).code).toBe("CHILD_UNPROVEN");
      const abort = new AbortController();
      memserver.onAttach = () => abort.abort();
      expect((await rejection(own.fork({ identity, signal: abort.signal }))).code).toBe("ABORTED");
      memserver.onAttach = undefined;
      {
        await using child = await own.fork({ identity });
        process.kill(child.pid, "SIGKILL");
        await child.exited;
      }
      expect(existsSync(file())).toBe(false);
    },
    TEST_MS,
  );

  test(
    "of the first child that is sound is sent to the next ones before they ask",
    async () => {
      await using own = lazy(options);
      const first = await own.fork({ identity: { index: 0, hostname: "first" } });
      await work(first);
      const shown = await memserver.stats(first.id);
      expect(shown.requestsBeforeRun).toBeGreaterThan(0);
      expect(shown.pushed).toBe(0);
      await first[Symbol.asyncDispose]();
      const pages = decodeWorkingSet(readFileSync(file()), image.table.pages);
      // It may have asked for some more until its end.
      expect(pages.length).toBeGreaterThanOrEqual(shown.requests);
      expect(pages.length).toBeLessThanOrEqual(image.table.pages / 10);
      for (let index = 1; index <= 3; index++) {
        await using child = await own.fork({ identity: { index, hostname: `next-${index}` } });
        const { requestsBeforeRun } = await memserver.stats(child.id);
        await work(child);
        const { requests } = await memserver.stats(child.id);
        expect([requestsBeforeRun, requests < shown.requests / 4]).toEqual([0, true]);
        await memserver.complete(child);
        expect([await sum(child), await checkMixed(child, index)]).toEqual([SUM_RIGHT, MIXED_RIGHT]);
      }
    },
    TEST_MS,
  );

  test(
    "is read from its file, and shown anew when that is damaged",
    async () => {
      for (const damaged of [false, true]) {
        if (damaged) writeFileSync(file(), readFileSync(file()).subarray(1));
        await using own = await another();
        await using lazies = lazyParent(parent, host, own, image, options);
        await using child = await lazies.fork({ identity: { index: 0, hostname: "other" } });
        await work(child);
        const { requestsBeforeRun } = await own.stats(child.id);
        expect(requestsBeforeRun === 0).toBe(!damaged);
        await child[Symbol.asyncDispose]();
      }
      expect(decodeWorkingSet(readFileSync(file()), image.table.pages).length).toBeGreaterThan(0);
    },
    TEST_MS,
  );

  test(
    "is not sent to a child that is to do without",
    async () => {
      await using child = await fork({ workingSet: false, backgroundAfterMs: NEVER_MS });
      await work(child);
      const { requestsBeforeRun, pushed } = await memserver.stats(child.id);
      expect(requestsBeforeRun).toBeGreaterThan(0);
      expect(pushed).toBe(0);
    },
    TEST_MS,
  );
});

describe("many children", () => {
  test(
    `are ${FAMILY} of one parent at once, each by its own name, and all become complete`,
    async () => {
      await using own = lazy({ workingSet: true, backgroundAfterMs: 0, backgroundBytesPerSecond: 100 * MIB });
      await using stack = new AsyncDisposableStack();
      const rssBefore = await memserver.rssBytes();
      let rssMost = 0;
      const children = await Promise.all(
        Array.from({ length: FAMILY }, async (_, index) => {
          const hostname = `lazy-${index}`;
          const child = stack.use(await own.fork({ identity: { index, hostname }, timeoutMs: TEST_MS }));
          rssMost = Math.max(rssMost, await memserver.rssBytes());
          return child;
        }),
      );
      expect(tracesOf(host).processes).toHaveLength(FAMILY + 1);
      const names = await Promise.all(children.map((child) => child.agent.run(["/bin/uname", "-n"])));
      expect(names.map(({ stdout }) => stdout.trim())).toEqual(children.map((_, index) => `lazy-${index}`));
      await Promise.all(children.map((child) => memserver.complete(child)));
      expect(await sum(children[7]!)).toEqual(SUM_RIGHT);
      rssMost = Math.max(rssMost, await memserver.rssBytes());
      // What it holds for a child is no share of the child's memory, of which there are 82 MB here.
      expect((rssMost - rssBefore) / FAMILY).toBeLessThan(6 * MIB);
    },
    TEST_MS,
  );

  test.each([
    ["two connections", true],
    ["one connection", false],
  ])(
    "have nothing kept for them in the memserver that they do not take, with %s",
    async (_name, preempt) => {
      await using own = lazy({ preempt, backgroundAfterMs: 1500, backgroundBytesPerSecond: FAST });
      await using stack = new AsyncDisposableStack();
      const children: Child[] = [];
      const rssBefore = await memserver.rssBytes();
      for (let index = 0; index < 4; index++) {
        const child = stack.use(await own.fork({ identity: { index, hostname: `stopped-${index}` } }));
        await stopProcess(child.pid);
        children.push(child);
      }
      const pushed = async () => {
        const stats = await Promise.all(children.map((child) => memserver.stats(child.id)));
        return stats.map((one) => one.pushed);
      };
      while ((await pushed()).includes(0)) await delay(20);
      // As much as it would take to send all of it.
      await delay(300);
      const stuck = await pushed();
      expect(Math.max(...stuck) * 4096).toBeLessThan(MIB);
      expect((await memserver.rssBytes()) - rssBefore).toBeLessThan(32 * MIB);
      for (const child of children) process.kill(child.pid, "SIGCONT");
      await Promise.all(children.map((child) => memserver.complete(child)));
      for (const child of children) expect(await sum(child)).toEqual(SUM_RIGHT);
    },
    TEST_MS,
  );
});

describe("a busy host", () => {
  test(
    "leaves no trace in a lazy child: siblings that write, and files beside the image",
    async () => {
      await using stack = new AsyncDisposableStack();
      const identity = (index: number) => ({ index, hostname: `busy-${index}` });
      const mapped = await Promise.all(
        [0, 1].map(async (index) => stack.use(await parent.fork({ identity: identity(index) }))),
      );
      await using own = lazy({ backgroundAfterMs: 300, backgroundBytesPerSecond: 30 * MIB });
      const children = await Promise.all(
        [2, 3].map(async (index) => stack.use(await own.fork({ identity: identity(index) }))),
      );
      let busy = true;
      // All of their memory, and more than the image on the disk where it is.
      const writing = mapped.map(async (child) => {
        const write = "dd if=/dev/urandom of=/run/x bs=1M count=24 2>/dev/null && rm /run/x && echo written";
        for (let times = 0; busy; times++) {
          const { stdout } = await child.agent.run(["/bin/sh", "-c", write]);
          if (stdout !== "written\n") throw new Error(`Sibling wrote ${times} times, and then: ${stdout}`);
        }
      });
      const besides = (async () => {
        for (let count = 0; busy; count++) {
          writeFileSync(join(image.dir, `beside-${count % 4}`), Buffer.alloc(8 * MIB, count));
          await delay(5);
        }
      })();
      try {
        for (const child of children) {
          expect(await checkMixed(child, 5)).toEqual(MIXED_RIGHT);
          expect(await touch(child, 2000, 5)).toMatchObject({ wrong: 0 });
        }
        await Promise.all(children.map((child) => memserver.complete(child)));
        for (const child of children) expect(await sum(child)).toEqual(SUM_RIGHT);
      } finally {
        busy = false;
        await Promise.all([...writing, besides]);
      }
    },
    TEST_MS,
  );
});

/** Pages in no order, zero pages among them. */
function someWorkingSet(): Uint32Array {
  const dice = new Dice(SEED);
  return Uint32Array.from(new Set(Array.from({ length: 2000 }, () => dice.int(0, 32_767))));
}
