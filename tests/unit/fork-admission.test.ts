import { describe, expect, test } from "bun:test";
import {
  Admission,
  availableMemory,
  type FamilyAdmission,
  hostLimits,
  type Ticket,
} from "../../runtime/fork/admission.ts";
import { rejection } from "../support/agent-peer.ts";

const MIB = 1024 * 1024;
const GUEST = 512 * MIB;

/** Asks for places, and tells which are given. */
function ask(admission: FamilyAdmission, names: string[], given: string[], signal?: AbortSignal) {
  return names.map(async (name) => {
    const ticket = await admission.acquire({ signal });
    given.push(name);
    return ticket;
  });
}

/** Lets everything happen that can happen now. */
async function settled(): Promise<void> {
  await new Promise((resolve) => setImmediate(resolve));
}

describe("Admission", () => {
  test("tells of those who wait: when they begin to, and while they go on", async () => {
    const admission = new Admission({ memoryBytes: 100 * GUEST, slots: 1 });
    const family = admission.family(GUEST);
    const told: number[] = [];
    const listening = admission.onWaiting(() => told.push(admission.waiting));
    const first = await family.acquire();
    expect(told).toEqual([]);
    const rest = [family.acquire(), family.acquire()];
    await settled();
    expect(told).toEqual([2, 2]);
    first[Symbol.dispose]();
    const second = await rest[0]!;
    await settled();
    expect(told).toEqual([2, 2, 1]);
    second[Symbol.dispose]();
    await rest[1];
    await settled();
    expect(told).toEqual([2, 2, 1]);
    listening[Symbol.dispose]();
  });

  test("gives places up to the slots, and the next ones in the order of asking", async () => {
    const admission = new Admission({ memoryBytes: 100 * GUEST, slots: 2 }).family(GUEST);
    const given: string[] = [];
    const asked = ask(admission, ["a", "b", "c", "d"], given);
    await settled();
    expect(given).toEqual(["a", "b"]);
    (await asked[1]!)[Symbol.dispose]();
    await settled();
    expect(given).toEqual(["a", "b", "c"]);
    (await asked[0]!)[Symbol.dispose]();
    await settled();
    expect(given).toEqual(["a", "b", "c", "d"]);
  });

  test("lets nobody overtake who waits already", async () => {
    const admission = new Admission({ memoryBytes: 100 * GUEST, slots: 1 }).family(GUEST);
    const given: string[] = [];
    const [first] = ask(admission, ["first", "second"], given);
    const held = await first!;
    held[Symbol.dispose]();
    ask(admission, ["late"], given);
    await settled();
    expect(given).toEqual(["first", "second"]);
  });

  test("gives a place back once, however often its ticket is disposed", async () => {
    const admission = new Admission({ memoryBytes: 100 * GUEST, slots: 1 }).family(GUEST);
    const ticket = await admission.acquire();
    ticket[Symbol.dispose]();
    ticket[Symbol.dispose]();
    const given: string[] = [];
    ask(admission, ["a", "b"], given);
    await settled();
    expect(given).toEqual(["a"]);
  });

  test("lets others have the processor time of a child that rests, and not its memory", async () => {
    const admission = new Admission({ memoryBytes: 3 * 176 * MIB, slots: 1 });
    const family = admission.family(GUEST);
    const first = await family.acquire();
    const given: string[] = [];
    const [second, third] = ask(family, ["second", "third"], given);
    await settled();
    expect(given).toEqual([]);
    first.rest();
    first.rest();
    const held = await second!;
    // Both have something to do: who waits, waits for both.
    first.resume();
    held.rest();
    await settled();
    expect(given).toEqual(["second"]);
    first[Symbol.dispose]();
    const last = await third!;
    last.rest();
    const more = [await family.acquire()];
    more[0]!.rest();
    // The memory of three.
    const waiting = ask(family, ["fourth"], given);
    await settled();
    expect(given).toEqual(["second", "third"]);
    held[Symbol.dispose]();
    for (const ticket of [await waiting[0]!, last, ...more]) ticket[Symbol.dispose]();
    const [a, b] = [await family.acquire(), family.acquire()];
    a[Symbol.dispose]();
    (await b)[Symbol.dispose]();
    expect(admission.waiting).toBe(0);
  });

  test("takes who gives up out of the queue, and no place is lost", async () => {
    const admission = new Admission({ memoryBytes: 100 * GUEST, slots: 1 }).family(GUEST);
    const held = await admission.acquire();
    const impatience = new AbortController();
    const given: string[] = [];
    const leaving = admission.acquire({ signal: impatience.signal });
    ask(admission, ["patient"], given);
    impatience.abort();
    expect((await rejection(leaving)).code).toBe("ABORTED");
    held[Symbol.dispose]();
    await settled();
    expect(given).toEqual(["patient"]);
    expect((await rejection(admission.acquire({ signal: impatience.signal }))).code).toBe("ABORTED");
  });

  test("keeps a place that is given in the moment of an abort", async () => {
    const admission = new Admission({ memoryBytes: 100 * GUEST, slots: 1 }).family(GUEST);
    const held = await admission.acquire();
    const abort = new AbortController();
    const waiting = admission.acquire({ signal: abort.signal });
    held[Symbol.dispose]();
    abort.abort();
    const outcome: Ticket | undefined = await waiting.catch(() => undefined);
    outcome?.[Symbol.dispose]();
    const given: string[] = [];
    ask(admission, ["next"], given);
    await settled();
    expect(given).toEqual(["next"]);
  });

  test("keeps children within the memory", async () => {
    const one = new Admission({ memoryBytes: GUEST, slots: 1 }).family(GUEST).bytesPerChild;
    const admission = new Admission({ memoryBytes: 3.5 * one, slots: 100 }).family(GUEST);
    const given: string[] = [];
    const asked = ask(admission, ["a", "b", "c", "d"], given);
    await settled();
    expect(given).toEqual(["a", "b", "c"]);
    expect((await asked[0]!).bytes).toBe(one);
    (await asked[0]!)[Symbol.dispose]();
    await settled();
    expect(given).toEqual(["a", "b", "c", "d"]);
  });

  test("learns from what children used: a larger one at once, smaller ones little by little", async () => {
    const admission = new Admission({ memoryBytes: 100 * GUEST, slots: 100 }).family(GUEST);
    const guess = admission.bytesPerChild;
    admission.learn(10 * MIB);
    expect(admission.bytesPerChild).toBeLessThan(guess);
    expect(admission.bytesPerChild).toBeGreaterThan(guess * 0.85);
    admission.learn(2 * guess);
    expect(admission.bytesPerChild).toBeGreaterThan(2 * guess);
    for (let child = 0; child < 100; child++) admission.learn(10 * MIB);
    expect(admission.bytesPerChild).toBeLessThan(20 * MIB);
  });

  test("admits more when children turn out smaller", async () => {
    const guess = new Admission({ memoryBytes: GUEST, slots: 1 }).family(GUEST).bytesPerChild;
    const admission = new Admission({ memoryBytes: 1.95 * guess, slots: 100 }).family(GUEST);
    const given: string[] = [];
    ask(admission, ["a", "b"], given);
    await settled();
    expect(given).toEqual(["a"]);
    for (let child = 0; child < 10; child++) admission.learn(10 * MIB);
    await settled();
    expect(given).toEqual(["a", "b"]);
  });

  test("never leaves somebody waiting on an empty host, whatever it has learnt meanwhile", async () => {
    const guess = new Admission({ memoryBytes: GUEST, slots: 1 }).family(GUEST).bytesPerChild;
    const admission = new Admission({ memoryBytes: 1.5 * guess, slots: 100 }).family(GUEST);
    const held = await admission.acquire();
    const given: string[] = [];
    ask(admission, ["waiting"], given);
    admission.learn(10 * guess);
    held[Symbol.dispose]();
    await settled();
    expect(given).toEqual(["waiting"]);
  });

  test.each([[{ memoryBytes: 10 * MIB, slots: 4 }], [{ memoryBytes: 100 * GUEST, slots: 0 }]])(
    "refuses at once what even an empty host has no room for",
    async (limits) => {
      const error = await rejection(new Admission(limits).family(GUEST).acquire());
      expect(error.code).toBe("ADMISSION_REFUSED");
      expect(error.message).toMatch(/needs \d+ MiB/);
    },
  );
});

describe("Admission of several families", () => {
  const LARGE = 2048 * MIB;

  test("shares one budget, and learns for each family alone", async () => {
    const admission = new Admission({ memoryBytes: 100 * GUEST, slots: 100 });
    const small = admission.family(GUEST);
    const large = admission.family(LARGE);
    expect(large.bytesPerChild).toBeGreaterThan(small.bytesPerChild);
    const before = large.bytesPerChild;
    small.learn(3 * GUEST);
    expect(small.bytesPerChild).toBeGreaterThan(3 * GUEST);
    expect(large.bytesPerChild).toBe(before);

    const tight = new Admission({ memoryBytes: large.bytesPerChild + 10 * MIB, slots: 100 });
    const given: string[] = [];
    const [held] = ask(tight.family(LARGE), ["large"], given);
    ask(tight.family(GUEST), ["small"], given);
    await settled();
    expect(given).toEqual(["large"]);
    (await held!)[Symbol.dispose]();
    await settled();
    expect(given).toEqual(["large", "small"]);
  });

  test("lets no small child overtake a large one that waits", async () => {
    const admission = new Admission({ memoryBytes: 700 * MIB, slots: 100 });
    const small = admission.family(GUEST);
    const given: string[] = [];
    const [first, second] = ask(small, ["small 1", "small 2"], given);
    ask(admission.family(LARGE), ["large"], given);
    ask(small, ["small 3"], given);
    (await first!)[Symbol.dispose]();
    await settled();
    expect(given).toEqual(["small 1", "small 2"]);
    (await second!)[Symbol.dispose]();
    await settled();
    expect(given[2]).toBe("large");
  });

  test("counts a child's CPUs as slots, at most all of them", async () => {
    const admission = new Admission({ memoryBytes: 100 * GUEST, slots: 2 });
    const given: string[] = [];
    const [wide] = ask(admission.family(GUEST, 8), ["wide"], given);
    ask(admission.family(GUEST), ["narrow 1", "narrow 2", "narrow 3"], given);
    await settled();
    expect(given).toEqual(["wide"]);
    (await wide!)[Symbol.dispose]();
    await settled();
    expect(given).toEqual(["wide", "narrow 1", "narrow 2"]);
    admission.slots = 3;
    await settled();
    expect(given).toHaveLength(4);
  });

  test("keeps to what the host has now, however much the budget is", async () => {
    let availableBytes = 10 * GUEST;
    let heldBytes = 0;
    const admission = new Admission({ memoryBytes: 100 * GUEST, slots: 100 }, () => ({
      availableBytes,
      heldBytes,
    }));
    const family = admission.family(GUEST);
    const given: string[] = [];
    const [first] = ask(family, ["a"], given);
    availableBytes = 0;
    heldBytes = family.bytesPerChild;
    ask(family, ["b", "c"], given);
    await settled();
    expect(given).toEqual(["a"]);
    // Whatever took the memory goes on taking it: one child at a time still runs.
    (await first!)[Symbol.dispose]();
    heldBytes = 0;
    await settled();
    expect(given).toEqual(["a", "b"]);
    availableBytes = 10 * GUEST;
    family.learn(10 * MIB);
    await settled();
    expect(given).toEqual(["a", "b", "c"]);
  });
});

describe("hostLimits()", () => {
  test("gives an emulated child a core of its own, and stays within the memory that is there", () => {
    const emulated = hostLimits("tcg", 2);
    expect(emulated.slots).toBe(2);
    expect(emulated.memoryBytes).toBeGreaterThan(0);
    expect(emulated.memoryBytes).toBeLessThan(2 * availableMemory());
    expect(hostLimits("kvm", 2).slots).toBeGreaterThan(2);
  });
});
