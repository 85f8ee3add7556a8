import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { FlurryError } from "../../errors/errors.ts";
import { type Isolation, rulesOf } from "../../runtime/workers/scaling/isolation.ts";
import { forkFailed, type SimulatedChild } from "../support/workers-scaling-host.ts";
import { type AskedRequest, close, openRouter } from "../support/workers-scaling-requests.ts";

const SEED = 20090402;

const concurrency = fc.integer({ min: 1, max: 3 });
const idleMs = fc.integer({ min: 50, max: 400 });
const maxAgeMs = fc.integer({ min: 100, max: 1500 });
const isolation: fc.Arbitrary<Isolation> = fc.oneof(
  fc.record({ mode: fc.constant("request" as const), idleMs }),
  fc.record({ mode: fc.constant("session" as const), concurrency, idleMs, maxAgeMs }),
  fc.record({
    ...{ mode: fc.constant("shared" as const), concurrency, idleMs, maxAgeMs },
    maxRequests: fc.integer({ min: 1, max: 8 }),
  }),
);
/** Turns of promises until the next step; undefined: until all that follows has happened. */
const turns = fc.option(fc.nat(15), { nil: undefined });
const steps = fc.array(
  fc.oneof(
    {
      weight: 8,
      arbitrary: fc.record({
        do: fc.constant("ask" as const),
        session: fc.constantFrom("a", "b", "c", "d"),
        starts: fc.boolean(),
        heeds: fc.boolean(),
        count: fc.integer({ min: 1, max: 3 }),
        turns,
      }),
    },
    { weight: 6, arbitrary: fc.record({ do: fc.constant("answer" as const), which: fc.nat(), turns }) },
    { weight: 5, arbitrary: fc.record({ do: fc.constant("advance" as const), ms: fc.nat(120) }) },
    { weight: 2, arbitrary: fc.record({ do: fc.constant("start" as const), which: fc.nat() }) },
    { weight: 3, arbitrary: fc.record({ do: fc.constant("abort" as const), which: fc.nat(), turns }) },
    { weight: 2, arbitrary: fc.record({ do: fc.constant("kill" as const), which: fc.nat() }) },
    { weight: 2, arbitrary: fc.record({ do: fc.constant("begin" as const), which: fc.nat() }) },
    { weight: 1, arbitrary: fc.record({ do: fc.constant("give way" as const) }) },
    { weight: 1, arbitrary: fc.record({ do: fc.constant("fail" as const), which: fc.nat() }) },
    { weight: 1, arbitrary: fc.record({ do: fc.constant("close channel" as const), which: fc.nat() }) },
  ),
  { maxLength: 80, size: "max" },
);
const plan = fc.record({
  isolation,
  maxChildren: fc.integer({ min: 1, max: 5 }),
  places: fc.integer({ min: 0, max: 6 }),
  maxQueue: fc.integer({ min: 1, max: 8 }),
  ahead: fc.integer({ min: 0, max: 3 }),
  queueMs: fc.integer({ min: 50, max: 600 }),
  /** Which forks fail, again and again in this pattern. */
  failures: fc.array(fc.boolean(), { minLength: 1, maxLength: 6 }),
  steps,
});
type Plan = typeof plan extends fc.Arbitrary<infer T> ? T : never;

const CODES = [
  ...["answered", "ABORTED", "QUEUE_FULL", "CHILD_DIED", "FORK_FAILED", "ADMISSION_REFUSED"],
  ...["SHUTTING_DOWN", "TASK_FAILED"],
];

/** What a child is seen to be and to have been given, from outside of the router. */
interface Seen {
  child: SimulatedChild;
  requests: AskedRequest[];
  session: string | undefined;
  /** It failed a request, so that it must get no other one. */
  isSpoilt: boolean;
}

class Model {
  readonly requests: AskedRequest[] = [];
  readonly seen = new Map<SimulatedChild, Seen>();
  /** Answers that have begun, some of them more than once. */
  begun = 0;
  /** The last child of each session. */
  readonly #current = new Map<string, SimulatedChild>();
  readonly #plan: Plan;
  readonly #handed = new Map<AskedRequest, number>();
  readonly #now: () => number;

  constructor(plan: Plan, now: () => number) {
    this.#plan = plan;
    this.#now = now;
  }

  /** Looks at what has been given to whom since the last time, in the order in which they came. */
  observe(): void {
    for (const request of this.requests) {
      const before = this.#handed.get(request) ?? 0;
      for (const child of request.given.slice(before)) this.#given(request, child);
      this.#handed.set(request, request.given.length);
    }
  }

  working(child: SimulatedChild): number {
    return this.requests.filter(({ workingIn }) => workingIn.has(child)).length;
  }

  #given(request: AskedRequest, child: SimulatedChild): void {
    const { isolation: rules } = this.#plan;
    const seen = this.seen.get(child) ?? {
      ...{ child, requests: [], session: request.session, isSpoilt: false },
    };
    this.seen.set(child, seen);
    seen.requests.push(request);
    expect(seen.isSpoilt).toBe(false);
    if (rules.mode === "request") expect(seen.requests).toHaveLength(1);
    else expect(this.#now() - child.readyAt).toBeLessThan(rules.maxAgeMs ?? 0);
    if (rules.mode === "shared") {
      expect(seen.requests.length).toBeLessThanOrEqual(rules.maxRequests ?? 0);
    }
    if (rules.mode === "session") this.#checkSession(request, seen);
  }

  #checkSession(request: AskedRequest, { child, session, requests }: Seen): void {
    expect(request.session).toBe(session!);
    // A session goes on to another child only for good.
    if (requests.length > 1) expect(this.#current.get(session!)).toBe(child);
    this.#current.set(session!, child);
  }
}

type Bench = ReturnType<typeof openRouter>;

/** What must hold whenever nothing happens without time passing. */
function check({ router, host }: Bench, model: Model, plan: Plan): void {
  const { isolation: rules, maxChildren, places, maxQueue } = plan;
  const { concurrency } = rulesOf(rules);
  const { queued, inFlight, children, ...stats } = router.stats();
  const { admitting, forking, spare, idle, busy, draining, ending } = children;
  const all = admitting + forking + spare + idle + busy + draining + ending;
  expect(all).toBeLessThanOrEqual(maxChildren);
  expect(host.tickets).toBeLessThanOrEqual(maxChildren);
  // Sessions that are away leave their places to others, and are back at once.
  if (rules.mode !== "session") expect(host.tickets).toBeLessThanOrEqual(places);
  expect(host.tickets).toBe(all - admitting);
  const ready = [...host.ahead].filter((child) => !child.gone && !model.seen.has(child));
  expect(ready.length).toBeLessThanOrEqual(plan.ahead);
  // Those of which nothing was sent come back to the queue when their child dies.
  expect(queued).toBeLessThanOrEqual(maxQueue + stats.rerouted);
  const workedIn = model.requests.flatMap(({ workingIn }) => [...workingIn]);
  expect(inFlight).toBeLessThanOrEqual(workedIn.length);
  // Work that heeds no signal may outlive its child.
  expect(inFlight).toBeGreaterThanOrEqual(workedIn.filter(({ gone }) => !gone).length);
  for (const { child } of model.seen.values()) {
    if (!child.gone) expect(model.working(child)).toBeLessThanOrEqual(concurrency);
    expect(child.disposals).toBeLessThanOrEqual(1);
  }
  // Nobody waits where there is a place, or where a child may be started for it.
  if (queued === 0) return;
  if (rules.mode !== "session") {
    expect([idle, spare]).toEqual([0, 0]);
    const covered = (admitting + forking) * concurrency;
    if (queued > covered) expect(all).toBe(maxChildren);
  } else if (all < maxChildren) {
    expect(admitting + forking + busy).toBeGreaterThan(0);
  }
}

function act(step: Plan["steps"][number], { ask, host, router }: Bench, model: Model): void {
  const { requests, seen } = model;
  const working = requests.filter((request) => request.working);
  if (step.do === "ask") {
    for (let n = 0; n < step.count; n++) requests.push(ask(step));
  }
  if (step.do === "answer") pick(working, step.which, (request) => request.answer());
  if (step.do === "start") pick(working, step.which, startIfAllowed);
  if (step.do === "begin") {
    pick(working, step.which, (request) => request.begin());
    model.begun += 1;
  }
  if (step.do === "give way") {
    host.roomWanted = true;
    router.giveWay();
    host.roomWanted = false;
  }
  if (step.do === "abort") {
    const open = requests.filter(({ outcome }) => outcome === undefined);
    pick(open, step.which, (request) => request.abort());
  }
  if (step.do === "kill") pick(host.live, step.which, (child) => child.die());
  if (step.do === "fail" || step.do === "close channel") {
    const code = step.do === "fail" ? "TASK_FAILED" : "AGENT_CLOSED";
    const heard = working.filter(({ outcome }) => outcome === undefined);
    pick(heard, step.which, (request) => {
      seen.get(request.child!)!.isSpoilt = true;
      request.fail(new FlurryError(code, "It went wrong"));
    });
  }
}

function startIfAllowed(request: AskedRequest): void {
  if (request.scope?.signal.aborted) expect(() => request.start()).toThrow();
  else request.start();
}

async function play(plan: Plan): Promise<void> {
  const { isolation: rules, failures, maxChildren, maxQueue, queueMs, places, ahead } = plan;
  const failure = (n: number) => (failures[n % failures.length] ? forkFailed() : undefined);
  const bench = openRouter(rules, { maxChildren, maxQueue, queueMs, places, ahead, failure });
  const { time, host, router } = bench;
  const model = new Model(plan, () => time.now());
  time.onMoment = () => {
    model.observe();
    check(bench, model, plan);
  };
  for (const step of plan.steps) {
    // What is given to a child in the moment in which it fails cannot be told from what comes later.
    if (step.do === "fail" || step.do === "close channel") await time.advance(0);
    model.observe();
    act(step, bench, model);
    if ("turns" in step && step.turns !== undefined) {
      for (let n = 0; n < step.turns; n++) await Promise.resolve();
      continue;
    }
    await time.advance(step.do === "advance" ? step.ms : 0);
    time.onMoment();
  }
  await close(router, time);
  // Work that heeds no signal ends at last.
  for (const request of model.requests) request.answer();
  await time.advance(1000);
  model.observe();
  for (const { outcomes, sentTo, given } of model.requests) {
    expect(outcomes).toHaveLength(1);
    expect(CODES).toContain(outcomes[0]!);
    // Whatever it was sent to was the last one that it was given to.
    expect([...sentTo]).toEqual(sentTo.size > 0 ? given.slice(-1) : []);
  }
  expect(host.children.map(({ disposals }) => disposals)).toEqual(host.children.map(() => 1));
  expect({ tickets: host.tickets, timers: time.timers }).toEqual({ tickets: 0, timers: 0 });
  const { inFlight, queued, children, ...stats } = router.stats();
  const { forks, failedForks, forksAhead, usedAhead, rerouted, retired } = stats;
  // Each request asks for one child at most, beside those that failed it or went before they could serve.
  expect(forks - forksAhead).toBeLessThanOrEqual(
    model.requests.length + failedForks + rerouted + retired.died + retired.age,
  );
  // And each that was answered, for one that is forked ahead.
  expect(forksAhead).toBeLessThanOrEqual(plan.ahead === 0 ? 0 : stats.answered + model.begun);
  // A request whose caller leaves in that moment takes a child, and does nothing with it.
  const unseen = host.children.filter((child) => !model.seen.has(child));
  expect(stats.unused).toBeLessThanOrEqual(unseen.length);
  expect(usedAhead).toBeGreaterThanOrEqual([...host.ahead].filter((child) => model.seen.has(child)).length);
  expect(usedAhead).toBeLessThanOrEqual(host.ahead.size);
  expect([inFlight, queued, ...Object.values(children)]).toEqual([0, 0, 0, 0, 0, 0, 0, 0, 0]);
}

function pick<T>(from: readonly T[], which: number, act: (one: T) => void): void {
  const chosen = from[which % Math.max(1, from.length)];
  if (chosen) act(chosen);
}

describe("RequestRouter", () => {
  test("keeps its limits, and settles each request and ends each child once, whatever happens when", async () => {
    await fc.assert(fc.asyncProperty(plan, play), { seed: SEED, numRuns: 500 });
  }, 120_000);
});
