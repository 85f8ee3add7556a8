import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { Admission, type Ticket } from "../../runtime/fork/admission.ts";

const SEED = 20090402;
const GUEST = 256 * 1024 * 1024;
const MIB = 1024 * 1024;

type Step =
  | { do: "ask" }
  | { do: "give back"; which: number }
  | { do: "give up"; which: number }
  | { do: "learn"; mib: number };

const steps: fc.Arbitrary<Step[]> = fc.array(
  fc.oneof(
    { weight: 4, arbitrary: fc.constant({ do: "ask" } as const) },
    { weight: 4, arbitrary: fc.record({ do: fc.constant("give back" as const), which: fc.nat() }) },
    { weight: 2, arbitrary: fc.record({ do: fc.constant("give up" as const), which: fc.nat() }) },
    { weight: 1, arbitrary: fc.record({ do: fc.constant("learn" as const), mib: fc.nat(200) }) },
  ),
  { maxLength: 60, size: "max" },
);

interface Request {
  number: number;
  abort: AbortController;
  ticket?: Ticket;
  over: boolean;
}

/** Plays the steps; checks after each one that limits and order hold. */
async function play(slots: number, memoryMib: number, plan: Step[]): Promise<void> {
  const limits = { slots, memoryBytes: memoryMib * MIB };
  const admission = new Admission(limits, GUEST);
  const requests: Request[] = [];
  const held = () => requests.filter(({ ticket, over }) => ticket && !over);
  const waiting = () => requests.filter(({ ticket, over }) => !ticket && !over);
  for (const step of plan) {
    if (step.do === "ask") ask(admission, requests);
    if (step.do === "give back") pick(held(), step.which, endOf);
    if (step.do === "give up") pick(waiting(), step.which, ({ abort }) => abort.abort());
    if (step.do === "learn") admission.learn(step.mib * MIB);
    await new Promise((resolve) => setImmediate(resolve));
    const bytes = held().reduce((sum, { ticket }) => sum + ticket!.bytes, 0);
    expect(held().length).toBeLessThanOrEqual(slots);
    if (held().length > 1) expect(bytes).toBeLessThanOrEqual(limits.memoryBytes);
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

function ask(admission: Admission, requests: Request[]): void {
  const request: Request = { number: requests.length, abort: new AbortController(), over: false };
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
