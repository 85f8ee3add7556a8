import { afterAll, afterEach, beforeAll, describe, expect, spyOn, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { bundleWorker, type WorkerBundle } from "../../guest-agent/worker-host/bundle.ts";
import { Admission, type FamilyAdmission } from "../../runtime/fork/admission.ts";
import { heldBytesOf } from "../../runtime/fork/child.ts";
import type { Parent } from "../../runtime/fork/parent.ts";
import { flurryHome } from "../../runtime/home.ts";
import { Host } from "../../runtime/vm/host.ts";
import type { WorkerOutput } from "../../runtime/workers/js/js-child.ts";
import { jsImage } from "../../runtime/workers/js/js-image.ts";
import { openJsParent } from "../../runtime/workers/js/js-parent.ts";
import {
  type ForksOptions,
  forksOf,
  JsService,
  type JsServiceOptions,
} from "../../runtime/workers/js/js-service.ts";
import { rejection } from "../support/agent-peer.ts";
import { SETUP_MS, TEST_MS, type TemporaryDirectory, tracesOf } from "../support/vm.ts";
import { homeWithImages } from "../support/workers-runtime.ts";

const MEMORY_MIB = 256;
const MIB = 1024 * 1024;
/** Bytes of QEMU's own, beside its guest's RAM. */
const QEMU_BYTES = 96 * MIB;

const SOURCE = `
const held = [];
const never = new Promise(() => {});
const routes = {
  "/echo": async (ctx, request) => new Response(await request.text()),
  "/memory": () => { for (;;) held.push(new Uint8Array(1 << 20).fill(1)); },
  "/exit": () => process.exit(7),
  "/exit-later": () => { setTimeout(() => process.exit(8), 20); return never; },
  "/kill": () => { process.kill(process.pid, "SIGKILL"); return never; },
  "/segv": () => { process.kill(process.pid, "SIGSEGV"); return never; },
  "/loop": () => { for (;;); },
  "/hang": () => {
    console.log("hanging");
    return never;
  },
  "/flood": async (ctx) => {
    const until = Date.now() + 2500;
    let lines = 0;
    while (Date.now() < until) {
      for (let i = 0; i < 100; i++, lines++) console.log("x".repeat(1000));
      await new Promise((resolve) => setTimeout(resolve));
    }
    return new Response(String(lines));
  },
  "/after": (ctx) => {
    ctx.waitUntil(new Promise((resolve) => setTimeout(resolve, 300)).then(() => console.log("after")));
    return new Response("before");
  },
};
export default {
  fetch(request, env, ctx) {
    const { pathname, searchParams } = new URL(request.url);
    return routes[pathname]?.(ctx, request) ?? new Response(searchParams.get("n"));
  },
};`;

let home: TemporaryDirectory;
let host: Host;
let parent: Parent;
let admission: FamilyAdmission;

beforeAll(async () => {
  home = await homeWithImages();
  host = await Host.open({ home: home.path });
  ({ parent } = await openJsParent(await parentOptions(SOURCE)));
  admission = new Admission({ slots: 8, memoryBytes: 8 * 1024 * MIB }).family(parent.descriptor.ram.bytes);
}, SETUP_MS);

afterEach(async () => {
  // Shells that a service had asked for end a little after it.
  while (tracesOf(host).processes.length > 0) await new Promise((resolve) => setTimeout(resolve, 5));
  while (tracesOf(host).files.length > 0) await new Promise((resolve) => setTimeout(resolve, 5));
  expect(tracesOf(host)).toEqual({ processes: [], files: [] });
});

afterAll(async () => {
  await parent[Symbol.asyncDispose]();
  await host[Symbol.asyncDispose]();
  home[Symbol.dispose]();
}, TEST_MS);

async function parentOptions(source: string, memMiB = MEMORY_MIB) {
  const image = await jsImage({ home: flurryHome() });
  return { host, image, name: "contained", bundle: await bundled(source), memMiB };
}

async function bundled(source: string): Promise<WorkerBundle> {
  const directory = mkdtempSync(join(home.path, "worker-"));
  try {
    writeFileSync(join(directory, "worker.ts"), source);
    return await bundleWorker(join(directory, "worker.ts"));
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

function service(isolation: JsServiceOptions["isolation"], more: Partial<ForksOptions> = {}): JsService {
  return new JsService({ ports: forksOf({ parent, admission, name: "contained", ...more }), isolation });
}

function get(path: string, signal?: AbortSignal): Request {
  return new Request(`http://worker${path}`, { signal: signal ?? null });
}

/** Settles when no child of a service is left; there is no event of it outside. Returns how long that took, in ms. */
async function allGone(of: JsService): Promise<number> {
  const began = performance.now();
  const count = () => Object.values(of.stats().children).reduce((sum, n) => sum + n, 0);
  while (count() > 0) await new Promise((resolve) => setTimeout(resolve, 5));
  return performance.now() - began;
}

/** Settles when a service's children have no requests: that is a little after the answers. */
async function idle(of: JsService): Promise<void> {
  while (of.stats().inFlight > 0) await new Promise((resolve) => setTimeout(resolve, 5));
}

/** Puts figures into the test's output: nothing is asserted of them. */
function report(line: string): void {
  process.stderr.write(`${line}\n`);
}

/** A child of another service that is asked one thing after the other. */
class Neighbour implements AsyncDisposable {
  readonly #service = service({ mode: "shared" });
  readonly #times: number[] = [];
  readonly #wrong: unknown[] = [];
  #asking = true;
  #asked: Promise<void> | undefined;

  /** Has it answer for a while alone, so that it is warm and there is something to compare with. */
  async start(): Promise<void> {
    this.#asked = this.#ask();
    while (this.#times.length < 100 && this.#wrong.length === 0)
      await new Promise((resolve) => setTimeout(resolve, 10));
  }

  /** What it answers while something else happens. */
  async during<T>(what: string, act: () => Promise<T>): Promise<T> {
    const before = this.#times.splice(0);
    const result = await act();
    const during = this.#times.splice(0);
    const line = (times: number[]) => `p50 ${at(times, 0.5)} ms, p99 ${at(times, 0.99)} ms (${times.length})`;
    report(`neighbour of ${what}: ${line(before)} before, ${line(during)} during`);
    this.#times.push(...before);
    expect(this.#wrong).toEqual([]);
    expect(during.length).toBeGreaterThan(0);
    return result;
  }

  async #ask(): Promise<void> {
    for (let n = 0; this.#asking; n++) {
      const began = performance.now();
      try {
        const answer = await (await this.#service.handle(get(`/?n=${n}`))).text();
        this.#times.push(performance.now() - began);
        if (answer !== String(n)) this.#wrong.push(answer);
      } catch (error) {
        this.#wrong.push(error);
      }
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#asking = false;
    await this.#asked;
    await this.#service[Symbol.asyncDispose]();
  }
}

function at(times: number[], share: number): string {
  const sorted = times.toSorted((a, b) => a - b);
  return (sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] ?? Number.NaN).toFixed(0);
}

describe("a child of isolation by request", () => {
  test(
    "is another one when the first has not proven who it is, and the request does not see it",
    async () => {
      const fork = parent.fork.bind(parent);
      using spy = spyOn(parent, "fork");
      spy.mockImplementationOnce((options) => fork({ ...options, timeoutMs: 1 }));
      await using one = service({ mode: "request" });
      expect(await (await one.handle(get("/?n=7"))).text()).toBe("7");
      expect(spy).toHaveBeenCalledTimes(2);
      expect(one.stats()).toMatchObject({ forks: 2, failedForks: 1 });
      spy.mockImplementation((options) => fork({ ...options, timeoutMs: 1 }));
      const error = await rejection(one.handle(get("/?n=8")));
      expect(error).toMatchObject({ code: "CHILD_UNPROVEN", field: "answer" });
      expect(spy).toHaveBeenCalledTimes(5);
    },
    TEST_MS,
  );
});

describe("a child whose worker ends", () => {
  const ends: [path: string, reason: string][] = [
    ["/exit", "the worker called process.exit(7)"],
    ["/exit-later", "the worker called process.exit(8)"],
    ["/kill", "the worker was ended by SIGKILL"],
    ["/segv", "the worker was ended by SIGSEGV"],
    ["/memory", "the worker ran out of memory"],
  ];
  test(
    "fails its request with the reason at once, and is gone, while its neighbour answers",
    async () => {
      await using neighbour = new Neighbour();
      await neighbour.start();
      for (const [path, reason] of ends) {
        await using one = service({ mode: "request" });
        const error = await neighbour.during(path, () => rejection(one.handle(get(path))));
        expect(error).toMatchObject({ code: "CHILD_DIED" });
        expect(error.message).toEndWith(`: ${reason}`);
        expect(await allGone(one)).toBeLessThan(1000);
        expect(one.stats().retired.died).toBe(1);
      }
    },
    TEST_MS,
  );

  test(
    "takes the other requests in it along, and the next one has another child",
    async () => {
      await using shared = service({ mode: "shared" });
      const others = [rejection(shared.handle(get("/hang"))), rejection(shared.handle(get("/hang")))];
      expect(await (await shared.handle(get("/?n=1"))).text()).toBe("1");
      const errors = [await rejection(shared.handle(get("/exit"))), ...(await Promise.all(others))];
      for (const { message } of errors) expect(message).toEndWith(": the worker called process.exit(7)");
      expect(await (await shared.handle(get("/?n=2"))).text()).toBe("2");
      await idle(shared);
      expect(shared.stats()).toMatchObject({ forks: 2, retired: { died: 1 } });
    },
    TEST_MS,
  );
});

describe("a child whose worker does not answer", () => {
  test(
    "is killed when it stands still, with the other requests in it, while its neighbour answers",
    async () => {
      await using neighbour = new Neighbour();
      await neighbour.start();
      await using shared = service({ mode: "shared" });
      expect(await (await shared.handle(get("/?n=1"))).text()).toBe("1");
      const other = rejection(shared.handle(get("/hang"), { timeoutMs: TEST_MS }));
      const late = await neighbour.during("/loop", () =>
        rejection(shared.handle(get("/loop"), { timeoutMs: 1000 })),
      );
      expect(late).toMatchObject({ code: "WORKER_TIMEOUT" });
      expect(late.message).toBe("The worker has not answered GET http://worker/loop within 1000 ms");
      expect(await other).toMatchObject({ code: "CHILD_DIED" });
      expect((await other).message).toEndWith(": its worker stood still for 2000 ms");
      expect(await (await shared.handle(get("/?n=2"))).text()).toBe("2");

      await using one = service({ mode: "request" });
      expect(await rejection(one.handle(get("/loop"), { timeoutMs: 1000 }))).toMatchObject({
        code: "WORKER_TIMEOUT",
      });
      expect(await allGone(one)).toBeLessThan(1000);
    },
    TEST_MS,
  );

  test(
    "keeps its other requests when it only does not let go of one, and gets no more of them",
    async () => {
      const hanging = Promise.withResolvers<void>();
      const output = { onLog: () => hanging.resolve() };
      await using shared = service({ mode: "shared", concurrency: 2 }, { output });
      expect(await (await shared.handle(get("/?n=1"))).text()).toBe("1");
      await idle(shared);
      const gone = new AbortController();
      const left = rejection(shared.handle(get("/hang", gone.signal)));
      const line = new TransformStream<Uint8Array, Uint8Array>();
      const writer = line.writable.getWriter();
      const staying = shared.handle(
        new Request("http://worker/echo", { method: "POST", body: line.readable }),
        { timeoutMs: TEST_MS },
      );
      await writer.write(Buffer.from("still "));
      await hanging.promise;
      gone.abort();
      expect(await left).toMatchObject({ code: "ABORTED" });
      while (shared.stats().retired.error + shared.stats().children.draining === 0)
        await new Promise((resolve) => setTimeout(resolve, 20));
      expect(shared.stats()).toMatchObject({ inFlight: 1, children: { draining: 1 } });
      expect(await (await shared.handle(get("/?n=2"))).text()).toBe("2");
      await writer.write(Buffer.from("here"));
      await writer.close();
      expect(await (await staying).text()).toBe("still here");
    },
    TEST_MS,
  );

  test(
    "is kept until what it gave to waitUntil is over",
    async () => {
      const lines: string[] = [];
      await using one = service(
        { mode: "request" },
        { output: { onLog: (_, { text }) => lines.push(text) } },
      );
      expect(await (await one.handle(get("/after"))).text()).toBe("before");
      expect(lines).toEqual([]);
      await allGone(one);
      expect(lines).toEqual(["after"]);
    },
    TEST_MS,
  );
});

describe("a child whose worker floods its log", () => {
  test(
    "slows its neighbour down no more than its processor time does, and costs the host no memory",
    async () => {
      await using neighbour = new Neighbour();
      await neighbour.start();
      let taken = 0;
      const output: WorkerOutput = {
        onLog: (_, { text }) => {
          taken += text.length;
        },
      };
      await using one = service({ mode: "request" }, { output });
      const before = process.memoryUsage.rss();
      const written = await neighbour.during("/flood", async () =>
        Number(await (await one.handle(get("/flood"))).text()),
      );
      const grown = process.memoryUsage.rss() - before;
      report(`flood: ${written} lines of 1000, ${taken} characters taken, ${grown >> 20} MiB more memory`);
      expect(taken).toBeGreaterThan(0);
      expect(taken).toBeLessThan(10 * MIB);
      expect(grown).toBeLessThan(64 * MIB);
    },
    TEST_MS,
  );
});

describe("a guest that takes all memory that it can have", () => {
  test(
    "costs the host no more than its RAM",
    async () => {
      await using one = service({ mode: "request" });
      const pids = new Set(tracesOf(host).processes);
      const dying = rejection(one.handle(get("/memory")));
      let most = 0;
      let over = false;
      void dying.then(() => {
        over = true;
      });
      while (!over) {
        for (const pid of tracesOf(host).processes)
          if (!pids.has(pid)) most = Math.max(most, heldBytesOf(pid));
        await new Promise((resolve) => setTimeout(resolve, 20));
      }
      expect((await dying).message).toEndWith(": the worker ran out of memory");
      report(`memory: ${most >> 20} MiB at most for a guest of ${MEMORY_MIB} MiB`);
      expect(most).toBeGreaterThan((MEMORY_MIB / 2) * MIB);
      expect(most).toBeLessThan(MEMORY_MIB * MIB + QEMU_BYTES);
    },
    TEST_MS,
  );
});

describe("openJsParent(), when the worker ends while it is loaded", () => {
  const ends: [what: string, source: string, reason: RegExp][] = [
    ["for lack of memory", `${SOURCE}; routes["/memory"]();`, /the worker ran out of memory$/],
    ["by a signal", `${SOURCE}; process.kill(process.pid, "SIGSEGV");`, /the worker was ended by SIGSEGV$/],
    ["by process.exit", `${SOURCE}; process.exit(3);`, /process\.exit\(3\)/],
    ["by process.exit later on", `${SOURCE}; setTimeout(() => process.exit(3));`, /process\.exit\(3\)/],
  ];
  test(
    "says how it ended",
    async () => {
      const errors = await Promise.all(
        ends.map(async ([, source]) => rejection(openJsParent(await parentOptions(source)))),
      );
      for (const [at, [what, , reason]] of ends.entries()) {
        const { code, message } = errors[at]!;
        expect([what, message]).toEqual([what, expect.stringMatching(reason)]);
        expect(code).toMatch(/^(TASK_FAILED|AGENT_REFUSED)$/);
      }
    },
    TEST_MS,
  );
});
