import { afterAll, afterEach, beforeAll, describe, expect, test } from "bun:test";
import { rmSync } from "node:fs";
import { setTimeout as delay } from "node:timers/promises";
import { codeOf } from "../../errors/errors.ts";
import { Child } from "../../runtime/fork/child.ts";
import { LazyMemory, type LazyOptions } from "../../runtime/fork/lazy-memory.ts";
import type { Parent } from "../../runtime/fork/parent.ts";
import { Host } from "../../runtime/vm/host.ts";
import type { QemuProcess } from "../../runtime/vm/qemu-process.ts";
import { rejection } from "../support/agent-peer.ts";
import { Dice } from "../support/dice.ts";
import {
  checkedParent,
  checkMixed,
  lazyParent,
  MIXED_RIGHT,
  type OwnImage,
  ownImage,
  SUM_RIGHT,
  sum,
  touch,
  WatchedMemserver,
} from "../support/memserver-lazy.ts";
import { descriptorsAfter, execPath } from "../support/memserver-traces.ts";
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

const SEED = 20090407;
const MIB = 1024 * 1024;
const FAST = Number.POSITIVE_INFINITY;
/** Milliseconds in which the background never begins. */
const NEVER_MS = 1e8;
const KILLS = 50;

let host: Host;
let parent: Parent;
let image: OwnImage;
let keys: TemporaryDirectory;
let before: string[];

beforeAll(async () => {
  host = await Host.open();
  parent = await checkedParent(host);
  image = ownImage(parent);
  keys = temporaryDirectory();
  before = openDescriptors();
}, SETUP_MS);

afterEach(async () => {
  expect(tracesOf(host)).toEqual(NO_TRACES);
  expect(await descriptorsAfter(before)).toEqual(before);
});

afterAll(async () => {
  image[Symbol.dispose]();
  keys[Symbol.dispose]();
  await parent[Symbol.asyncDispose]();
  await host[Symbol.asyncDispose]();
});

async function newMemserver(silenceMs?: number): Promise<WatchedMemserver> {
  const memserver = new WatchedMemserver({ host, keys: keys.path, silenceMs });
  await memserver.open(image.hash, image.dir);
  return memserver;
}

interface Forked extends AsyncDisposable {
  child: Child;
  qemu: QemuProcess;
  options: LazyOptions;
}

/** A child whose QEMU can be spoken to. */
async function fork(memserver: WatchedMemserver, options: LazyOptions, index = 0): Promise<Forked> {
  await using own = lazyParent(parent, host, memserver, image, options);
  const taken = await own.shells.take();
  const child = await Child.start({
    ...{ taken, shellMs: 0, memory: new LazyMemory(memserver, image.hash, options), id: `vm-${index}` },
    ...{ identity: { index, hostname: `lazy-${index}` }, memBytes: parent.descriptor.ram.bytes },
    origin: own.origin,
  });
  return {
    child,
    options,
    qemu: taken.shell.qemu,
    [Symbol.asyncDispose]: () => child[Symbol.asyncDispose](),
  };
}

/** Has a child read all that it can check, some of it at the same time. */
async function checkAll(child: Child, seed: number): Promise<void> {
  const reading = Promise.all([checkMixed(child, seed), touch(child, 3000, seed)]);
  expect(await reading).toMatchObject([MIXED_RIGHT, { count: 3000, wrong: 0 }]);
  expect(await sum(child)).toEqual(SUM_RIGHT);
}

async function killed(pid: number | undefined): Promise<boolean> {
  try {
    return pid !== undefined && process.kill(pid, "SIGKILL");
  } catch (error) {
    if (codeOf(error) !== "ESRCH") throw error;
    return false;
  }
}

describe.each([
  ["two connections", true],
  ["one connection", false],
])("a child with %s", (_name, preempt) => {
  test.each([
    ["nothing but what it asks for", { backgroundAfterMs: NEVER_MS }],
    ["some of it unasked", { backgroundAfterMs: 0, backgroundBytesPerSecond: 40 * MIB }],
  ])(
    "goes on when its connection breaks with both ends alive, while it is given %s",
    async (_what, options) => {
      await using memserver = await newMemserver();
      await using forked = await fork(memserver, { preempt, ...options });
      const { child, qemu } = forked;
      for (let time = 0; time < 3; time++) {
        const checking = checkMixed(child, time);
        await delay(20 * time);
        using active = qemu.qmp.expect("MIGRATION", {
          timeoutMs: TEST_MS,
          filter: ({ data }) => data.status === "postcopy-active",
        });
        await qemu.qmp.executeUntyped("migrate-pause");
        await active;
        expect(await checking).toEqual(MIXED_RIGHT);
      }
      await checkAll(child, 9);
      expect(memserver.starts).toBe(1);
      if (options.backgroundAfterMs === 0) await memserver.complete(child);
    },
    TEST_MS,
  );

  test(
    "goes on when its memserver is killed and when it is stopped, again and again",
    async () => {
      await using memserver = await newMemserver(300);
      await using forked = await fork(memserver, { preempt, backgroundAfterMs: NEVER_MS });
      for (let time = 0; time < 4; time++) {
        // Pages that it has not read before, each time.
        const checking = Promise.all([checkMixed(forked.child, time), touch(forked.child, 2000, time)]);
        await delay(30);
        const pid = (await memserver.pid())!;
        if (time % 2 === 0) process.kill(pid, "SIGKILL");
        else await stopProcess(pid);
        expect(await checking).toMatchObject([MIXED_RIGHT, { count: 2000, wrong: 0 }]);
      }
      await checkAll(forked.child, 9);
      expect(memserver.starts).toBe(5);
    },
    TEST_MS,
  );
});

/** Kills memservers at moments that dice choose: around what happens to children, or at any time. */
class Killer {
  kills = 0;
  readonly #memserver: WatchedMemserver;
  readonly #dice: Dice;
  #attached: ((recover: boolean) => void) | undefined;

  constructor(memserver: WatchedMemserver, dice: Dice) {
    this.#memserver = memserver;
    this.#dice = dice;
    memserver.onAttach = ({ recover }) => this.#attached?.(recover);
  }

  /** So often, until `over`. */
  async strike(times: number, over: AbortSignal): Promise<void> {
    for (let time = 0; time < times && !over.aborted; time++) {
      await this.#moment(over);
      if (await killed(await this.#memserver.pid())) this.kills += 1;
    }
  }

  async #moment(over: AbortSignal): Promise<void> {
    const dice = this.#dice;
    const what = dice.pick(["attach", "recovery", "recovery", "anything", "anything", "anything"]);
    if (what === "anything") return await sleep(dice.int(0, 300), over);
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#attached = (recover) => {
      if (recover === (what === "recovery")) resolve();
    };
    // Where nothing of it happens any more.
    await Promise.race([promise, sleep(400, over)]);
    await sleep(dice.pick([0, 0, 1, 2, 4, 8, 16]), over);
  }
}

function someOptions(dice: Dice): LazyOptions {
  const [backgroundAfterMs, backgroundBytesPerSecond] = dice.pick([
    [0, 40 * MIB],
    [300, 60 * MIB],
    [500, FAST],
    [NEVER_MS, FAST],
  ] as const);
  const [preempt, workingSet] = [dice.chance(0.5), dice.chance(0.5)];
  return { backgroundAfterMs, backgroundBytesPerSecond, preempt, workingSet };
}

/** Has a child read a lot while its memservers are killed, and all that it can check if it becomes complete. */
async function checkKilled({ child, qemu, options }: Forked, seed: number): Promise<void> {
  const reading = Promise.all([checkMixed(child, seed), touch(child, 2000, seed)]);
  expect(await reading).toMatchObject([MIXED_RIGHT, { count: 2000, wrong: 0 }]);
  if (options.backgroundAfterMs === NEVER_MS) return;
  // Said by QEMU: a memserver may be killed before it has said so.
  while ((await qemu.qmp.execute("query-migrate")).status !== "completed") await delay(20);
  expect(await sum(child)).toEqual(SUM_RIGHT);
}

async function sleep(ms: number, signal: AbortSignal): Promise<void> {
  await delay(ms, undefined, { signal }).catch(() => undefined);
}

test(
  `children go on with the right bytes when ${KILLS} memservers are killed, or do not start and say why`,
  async () => {
    const dice = new Dice(SEED);
    await using memserver = await newMemserver();
    const killer = new Killer(memserver, dice);
    const failures: string[] = [];
    let sound = 0;
    for (let round = 0; killer.kills < KILLS; round++) {
      const over = new AbortController();
      const forks = [0, 1, 2].map(async (index) => {
        await delay(dice.int(0, 100));
        return await fork(memserver, someOptions(dice), round * 3 + index);
      });
      const children = forks.map(async (forking) => {
        let forked: Forked;
        try {
          forked = await forking;
        } catch (error) {
          failures.push(codeOf(error) ?? String(error));
          return;
        }
        await using own = forked;
        await checkKilled(own, dice.int(0, 1e9));
        sound += 1;
      });
      // Mostly when they work: one that is not forked has nothing to go on with.
      if (dice.chance(0.7)) await Promise.allSettled(forks);
      const striking = killer.strike(dice.int(3, 7), over.signal);
      // Whatever becomes of one of them, all come to an end.
      const ends = await Promise.allSettled(children);
      over.abort();
      await striking;
      for (const end of ends) if (end.status === "rejected") throw end.reason;
    }
    expect(failures.filter((code) => code !== "FORK_FAILED" && code !== "MEMSERVER_FAILED")).toEqual([]);
    expect(sound).toBeGreaterThan(KILLS / 5);
    expect(memserver.starts).toBeGreaterThan(KILLS / 2);
  },
  TEST_MS,
);

test.each([
  ["two connections", true],
  ["one connection", false],
])(
  "a fork ends at once when the memserver is killed before the CPUs run, with %s",
  async (_name, preempt) => {
    // Nothing else is to end it.
    const forever = { recoverMs: 3_600_000, timeoutMs: 3_600_000 };
    await using memserver = await newMemserver();
    const pids: (number | undefined)[] = [];
    const ends: string[] = [];
    for (let time = 0; time < 8; time++) {
      pids.push(await memserver.pid());
      // Requests come from here on, and are not answered.
      memserver.onAttached = ({ recover }) => {
        if (!recover) process.kill(pids.at(-1)!, "SIGKILL");
      };
      await using own = lazyParent(parent, host, memserver, image, {
        preempt,
        ...forever,
        workingSet: false,
      });
      const forking = own.fork({ identity: { index: time, hostname: "early" }, ...forever });
      const error = await forking.then(
        (child) => child[Symbol.asyncDispose](),
        (reason: unknown) => reason,
      );
      ends.push(error === undefined ? "forked" : `${codeOf(error)}`);
      // As long as the next one needs it.
      memserver.onAttached = undefined;
      await memserver.open(image.hash, image.dir);
    }
    expect(ends.filter((end) => !["forked", "FORK_FAILED", "MEMSERVER_FAILED"].includes(end))).toEqual([]);
    expect(ends.filter((end) => end !== "forked").length).toBeGreaterThan(0);
  },
  TEST_MS,
);

describe("a child that no memserver can take on", () => {
  const RECOVER_MS = 1500;
  const options: LazyOptions = { backgroundAfterMs: NEVER_MS, recoverMs: RECOVER_MS };

  /** What becomes of a command of this child that needs pages. */
  async function failureOf(child: Child): Promise<unknown> {
    try {
      await touch(child, 6000, 1);
    } catch (error) {
      return await child.explain(error);
    }
    throw new Error("The child goes on");
  }

  test.each([
    ["when it works", true],
    ["when it is idle", false],
  ])(
    "is killed in time, and says why: its memserver has been ended %s",
    async (_when, works) => {
      await using memserver = await newMemserver();
      await using forked = await fork(memserver, options);
      const { child } = forked;
      const failing = works ? failureOf(child) : undefined;
      await memserver[Symbol.asyncDispose]();
      await child.exited;
      expect(await (failing ?? failureOf(child))).toMatchObject({
        code: "CHILD_DIED",
        message: `${child.id} was killed: no memserver could take it on within ${RECOVER_MS} ms: The memserver has been ended`,
      });
    },
    TEST_MS,
  );

  test(
    "is killed in time, and says why: there is no program of one any more",
    async () => {
      await using memserver = await newMemserver();
      await using forked = await fork(memserver, options);
      const failing = failureOf(forked.child);
      using _broken = execPath("/nowhere/bun");
      expect(await killed(await memserver.pid())).toBe(true);
      expect(await failing).toMatchObject({
        code: "CHILD_DIED",
        message: expect.stringMatching(/: The memserver \(pid -1\) did not start: .*\/nowhere\/bun/),
      });
      await forked.child.exited;
    },
    TEST_MS,
  );

  test(
    "is killed in time, and says why: the image is gone",
    async () => {
      using own = ownImage(parent);
      await using memserver = new WatchedMemserver({ host, keys: keys.path });
      await memserver.open(own.hash, own.dir);
      // Found out at once, and not by the deadline.
      await using forked = await fork(memserver, { ...options, recoverMs: 3_600_000 });
      rmSync(own.dir, { recursive: true });
      const failing = failureOf(forked.child);
      process.kill((await memserver.pid())!, "SIGKILL");
      expect(await failing).toMatchObject({
        code: "CHILD_DIED",
        message: expect.stringContaining(own.hash),
      });
    },
    TEST_MS,
  );

  test(
    "needs none when it is complete",
    async () => {
      await using memserver = await newMemserver();
      const all = { backgroundAfterMs: 0, backgroundBytesPerSecond: FAST, recoverMs: 50 };
      await using forked = await fork(memserver, all);
      await memserver.complete(forked.child);
      await memserver[Symbol.asyncDispose]();
      await delay(100);
      await checkAll(forked.child, 3);
    },
    TEST_MS,
  );

  test(
    "is not started",
    async () => {
      await using memserver = await newMemserver();
      process.kill((await memserver.pid())!, "SIGKILL");
      {
        using _broken = execPath("/nowhere/bun");
        const error = await rejection(fork(memserver, options));
        expect(error.code).toBe("MEMSERVER_FAILED");
      }
      // The next one is, when there is a memserver again.
      await using forked = await fork(memserver, options);
      await checkAll(forked.child, 3);
    },
    TEST_MS,
  );
});
