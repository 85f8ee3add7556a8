import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { Admission, type FamilyAdmission, type Ticket } from "../../runtime/fork/admission.ts";

const SEED = 20090402;
const MIB = 1024 * 1024;
/** Guests of the families: memory and CPUs. */
const GUESTS = [
  [64 * MIB, 1],
  [256 * MIB, 1],
  [512 * MIB, 3],
] as const;

type Step =
  | { do: "ask"; family: number }
  | { do: "give back"; which: number }
  | { do: "give up"; which: number }
  | { do: "learn"; family: number; mib: number }
  | { do: "fill"; mib: number };

const family = fc.nat(GUESTS.length - 1);
const steps: fc.Arbitrary<Step[]> = fc.array(
  fc.oneof(
    { weight: 4, arbitrary: fc.record({ do: fc.constant("ask" as const), family }) },
    { weight: 4, arbitrary: fc.record({ do: fc.constant("give back" as const), which: fc.nat() }) },
    { weight: 2, arbitrary: fc.record({ do: fc.constant("give up" as const), which: fc.nat() }) },
    { weight: 1, arbitrary: fc.record({ do: fc.constant("learn" as const), family, mib: fc.nat(200) }) },
    { weight: 1, arbitrary: fc.record({ do: fc.constant("fill" as const), mib: fc.nat(500) }) },
  ),
  { maxLength: 60, size: "max" },
);

interface Request {
  number: number;
  cpus: number;
  abort: AbortController;
  ticket?: Ticket;
  over: boolean;
}

/** Plays the steps; checks after each one that limits and order hold. */
async function play(slots: number, memoryMib: number, plan: Step[]): Promise<void> {
  const limits = { slots, memoryBytes: memoryMib * MIB };
  const requests: Request[] = [];
  const held = () => requests.filter(({ ticket, over }) => ticket && !over);
  const waiting = () => requests.filter(({ ticket, over }) => !ticket && !over);
  const heldBytes = () => held().reduce((sum, { ticket }) => sum + ticket!.bytes, 0);
  let availableBytes = limits.memoryBytes * 2;
  const admission = new Admission(limits, () => ({ availableBytes, heldBytes: heldBytes() / 2 }));
  const families = GUESTS.map(([bytes, cpus]) => admission.family(bytes, cpus));
  for (const step of plan) {
    if (step.do === "ask") ask(families[step.family]!, requests);
    if (step.do === "give back") pick(held(), step.which, endOf);
    if (step.do === "give up") pick(waiting(), step.which, ({ abort }) => abort.abort());
    if (step.do === "learn") families[step.family]!.learn(step.mib * MIB);
    if (step.do === "fill") availableBytes = step.mib * MIB;
    await new Promise((resolve) => setImmediate(resolve));
    if (held().length > 1) {
      const cpus = held().reduce((sum, request) => sum + Math.min(request.cpus, slots), 0);
      expect(cpus).toBeLessThanOrEqual(slots);
      expect(heldBytes()).toBeLessThanOrEqual(limits.memoryBytes);
    }
    // Nobody waits on an empty host, and nobody has overtaken who waits.
    if (waiting().length > 0) expect(held().length).toBeGreaterThan(0);
    const firstWaiting = waiting()[0]?.number ?? Number.POSITIVE_INFINITY;
    expect(held().filter(({ number }) => number > firstWaiting)).toEqual([]);
  }
  // Whatever has happened, everybody gets a place in the end.
  while (waiting().length > 0) {
    held().forEach(endOf);
    await new Promise((resolve) => setImmediate(resolve));
  }
}

function ask(admission: FamilyAdmission, requests: Request[]): void {
  const { cpus } = admission;
  const request: Request = { number: requests.length, cpus, abort: new AbortController(), over: false };
  requests.push(request);
  admission.acquire({ signal: request.abort.signal }).then(
    (ticket) => {
      request.ticket = ticket;
    },
    () => {
      request.over = true;
    },
  );
}

function endOf(request: Request): void {
  request.over = true;
  request.ticket?.[Symbol.dispose]();
}

function pick(from: Request[], which: number, act: (request: Request) => void): void {
  const chosen = from[which % Math.max(1, from.length)];
  if (chosen) act(chosen);
}

describe("Admission", () => {
  test("keeps its limits and the order, and loses no place, whatever happens when", async () => {
    await fc.assert(
      fc.asyncProperty(fc.integer({ min: 1, max: 5 }), fc.integer({ min: 120, max: 1000 }), steps, play),
      { seed: SEED, numRuns: 300 },
    );
  }, 60_000);
});
