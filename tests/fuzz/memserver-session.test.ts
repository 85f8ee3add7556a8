import { expect, test } from "bun:test";
import type { ChildSpec } from "../../memserver/child/child-spec.ts";
import { ChildSession } from "../../memserver/child/session.ts";
import { PAGE_BYTES } from "../../memserver/stream/format.ts";
import { Dice } from "../support/dice.ts";
import { bitmapOf, requestOf, ScriptedQemu } from "../support/memserver-qemu.ts";
import { ScriptedSource } from "../support/memserver-source.ts";
import { DEVICES } from "../support/memserver-streams.ts";
import { openDescriptors, openedSince } from "../support/vm.ts";

const SEED = 20090403;
const ROUNDS = 100;
const ROM = { name: "pc.bios", bytes: 64 * PAGE_BYTES };
/** What a QEMU does before it only waits for the end. */
const STEPS = 150;

interface Round {
  dice: Dice;
  spec: ChildSpec;
  source: ScriptedSource;
  /** Pages that the child has from a memserver before. */
  had: Set<number>;
  /** What the guest has asked for. */
  asked: Set<number>;
  askedRom: Set<number>;
}

/** Numbers in clusters, as memory has them. */
function clusters(dice: Dice, pages: number, share: number): Set<number> {
  const chosen = new Set<number>();
  while (chosen.size < pages * share) {
    const from = dice.int(0, pages - 1);
    const to = Math.min(pages, from + dice.pick([1, 1, 2, 7, 40, 100]));
    for (let page = from; page < to; page++) chosen.add(page);
  }
  return chosen;
}

function makeRound(dice: Dice, recovers: boolean): Round {
  const pages = dice.int(100, 1600);
  const zeros = clusters(dice, pages, dice.pick([0, 0.1, 0.5]));
  const far = [...clusters(dice, pages, dice.pick([0, 0, 0.05, 0.3]))].filter((page) => !zeros.has(page));
  const workingSet = Uint32Array.from(dice.shuffled([...clusters(dice, pages, 0.05)]));
  const spec: ChildSpec = {
    ...{ socket: "", machine: "pc-q35-10.0", devices: DEVICES },
    block: { name: "ram0", bytes: pages * PAGE_BYTES },
    preempt: dice.chance(0.5),
    background: {
      afterMs: dice.pick([0, 0, 5]),
      bytesPerSecond: dice.pick([Number.POSITIVE_INFINITY, Number.POSITIVE_INFINITY, 100e6]),
    },
    workingSet: !recovers && dice.chance(0.5) ? workingSet : undefined,
    record: dice.chance(0.3),
    measure: dice.chance(0.3),
  };
  const had = recovers ? clusters(dice, pages, dice.pick([0, 0.2, 0.9])) : new Set<number>();
  const source = new ScriptedSource({ pages, zeros, far });
  return { dice, spec, source, had, asked: new Set(), askedRom: new Set() };
}

/** A guest asks, QEMU reads or does not, pages come from elsewhere: one of these. */
async function step(round: Round, qemu: ScriptedQemu, said: Set<number>): Promise<void> {
  const { dice, source, spec } = round;
  const sockets = spec.preempt ? [qemu.main, qemu.urgent] : [qemu.main];
  switch (dice.int(0, 9)) {
    case 0:
      dice.pick(sockets).pause();
      return;
    case 1:
    case 2:
      dice.pick(sockets).resume();
      return;
    case 3:
    case 4: {
      const page = dice.int(0, 63);
      round.askedRom.add(page);
      qemu.request(page, ROM.name);
      return;
    }
    case 5:
    case 6: {
      // Some of it over and over, since it is asked for by more than one connection's QEMU.
      const pages = Array.from({ length: dice.pick([1, 3, 40]) }, () => dice.int(0, source.pages - 1));
      const missing = pages.filter((page) => !round.had.has(page));
      for (const page of missing) said.add(page);
      if (missing.length > 0) qemu.say(...missing.map((page) => requestOf(page, "ram0")));
      return;
    }
    case 7:
      if (source.waiting.length > 0) dice.pick(source.waiting).arrive();
      return;
    default:
      await new Promise((resolve) => setTimeout(resolve, dice.pick([0, 0, 1, 2])));
  }
}

async function start(round: Round, qemu: ScriptedQemu, recovers: boolean): Promise<ChildSession> {
  const { source } = round;
  const spec = { ...round.spec, socket: qemu.path };
  if (!recovers) return await ChildSession.start(spec, source);
  const recovering = ChildSession.recover(spec, source);
  await qemu.until(() => qemu.kinds.includes("recv-bitmap"));
  qemu.say(bitmapOf(spec.block, round.had));
  await qemu.until(() => qemu.kinds.includes("resume"));
  qemu.say({ kind: "resume-ack", at: 0 });
  return await recovering;
}

/** One child from its start, or from where it was lost, to its end. */
async function play(seed: number, recovers: boolean): Promise<void> {
  const round = makeRound(new Dice(seed), recovers);
  const { dice, source, spec, asked } = round;
  await using _source = source;
  await using qemu = await ScriptedQemu.listen([spec.block, ROM], { recovers });
  await using session = await start(round, qemu, recovers);
  await qemu.until(() => qemu.kinds.includes("part") && (!spec.preempt || qemu.connections === 2));
  for (let count = 0; count < STEPS && !qemu.ended; count++) await step(round, qemu, asked);
  qemu.main.resume();
  if (spec.preempt) qemu.urgent.resume();
  while (!qemu.ended) {
    for (const fetch of dice.shuffled(source.waiting)) fetch.arrive();
    await qemu.until(() => true);
    await new Promise((resolve) => setTimeout(resolve, 0));
  }
  const answered = () => {
    const got = new Set(qemu.pagesOf("ram0"));
    const rom = new Set(qemu.pagesOf(ROM.name));
    return [...asked].every((page) => got.has(page)) && [...round.askedRom].every((page) => rom.has(page));
  };
  // Without a second connection what is asked for at the end is known by then, or a page of zeros.
  if (spec.preempt) await qemu.until(answered);
  check(round, qemu);
  qemu.say({ kind: "shut", at: 0, status: 0 });
  expect(await session.ended).toEqual({ kind: "complete" });
  const pushed = qemu.pagesOf("ram0").length - session.stats.requests;
  expect(session.stats.pushed).toBe(pushed);
}

function check({ source, spec, had, asked, askedRom }: Round, qemu: ScriptedQemu): void {
  const ram = qemu.pages.filter(({ block }) => block === "ram0");
  const got = new Set(ram.map(({ page }) => page));
  // No page twice; every one that is not zeros, unless it was there; zeros only for a reason.
  expect(ram.length).toBe(got.size);
  expect(source.dataPages.filter((page) => got.has(page) === had.has(page))).toEqual([]);
  const listed = new Set(spec.workingSet);
  const unasked = [...got].filter((page) => source.isZero(page) && !asked.has(page) && !listed.has(page));
  expect(unasked).toEqual([]);
  const wrong = ram.filter(
    ({ page, data, zero }) => zero !== source.isZero(page) || !data.equals(source.content(page)),
  );
  expect(wrong.map(({ page }) => page)).toEqual([]);
  const rom = qemu.pagesOf(ROM.name);
  expect(new Set(rom).size).toBe(rom.length);
  expect(rom.filter((page) => !askedRom.has(page))).toEqual([]);
}

test.each([
  ["started", false],
  ["recovered", true],
])("a child that is %s gets each page once and right, whatever comes between", async (_how, recovers) => {
  const before = openDescriptors();
  for (let round = 0; round < ROUNDS; round++) {
    const seed = SEED + round;
    await play(seed, recovers).catch((error: unknown) => {
      throw new Error(`With seed ${seed}: ${error instanceof Error ? error.message : error}`, {
        cause: error,
      });
    });
  }
  expect(openedSince(before)).toEqual([]);
});
