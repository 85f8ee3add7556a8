import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { setTimeout as delay } from "node:timers/promises";
import { VmEnds } from "../../bench/vm-ends.ts";
import type { ScheduledRun, WorkerLogRecord, WorkerVersion } from "../../runtime/api/mod.ts";
import { distributionOf } from "../../runtime/stats.ts";
import { processesOf } from "../../runtime/vm/owner.ts";
import { VmTaskRuntime } from "../../runtime/workers/vm-task-runtime.ts";
import { eventually, GatewaySandbox, problemFrom } from "../support/gateway-sandbox.ts";
import { SETUP_MS, TEST_MS, type TemporaryDirectory } from "../support/vm.ts";
import { homeWithImages } from "../support/workers-runtime.ts";

/**
 * A worker that counts the requests which its VM has seen. What is deployed with the same mark has the same
 * parent, whatever its variables and the way it is asked.
 */
function counter(mark: string): string {
  return `let asked = 0;
    let left;
    export default {
      setup() { asked = 100; },
      async fetch(request, env, ctx) {
        const { pathname } = new URL(request.url);
        if (pathname === "/boom") throw new Error("it went wrong");
        if (pathname === "/exit") process.exit(3);
        if (pathname === "/ask") return await ask(await request.text());
        if (pathname === "/traces") return Response.json(await traces());
        return Response.json({ mark: "${mark}", asked: ++asked, vm: ctx.vm.id, env, body: await request.text() });
      },
      task(input, ctx) {
        console.log("got", JSON.stringify(input));
        if (input === "bad") throw new Error("it is bad");
        if (input === "hang") for (;;);
        if (input === "long") return "x".repeat(1024 * 1024);
        return { doubled: input * 2, asked: ++asked, index: ctx.vm.index, env: ctx.env.FLURRY_TASK_COUNT };
      },
      scheduled({ cron }, env, ctx) {
        if (cron === "0 1 1 1 *") throw new Error("it is night");
        if (cron === "0 2 1 1 *") return new Promise(() => {});
        if (cron === "0 3 1 1 *") ctx.waitUntil(Promise.reject(new Error("it is late")));
        ctx.waitUntil(Bun.sleep(50).then(() => console.log("called for", cron, ++asked, env.GREETING)));
      },
    };
    async function ask(url) {
      try {
        const answer = await fetch(url);
        return new Response(answer.status + " " + (await answer.text()));
      } catch (error) {
        return new Response(error.message, { status: 418 });
      }
    }
    /** What others have left wherever something can be left, and leaves as much. */
    async function traces() {
      const file = Bun.file("/tmp/trace");
      const seen = [left, globalThis.trace, Bun.trace, process.env.TRACE, (await file.exists()) ? "file" : undefined];
      left = globalThis.trace = Bun.trace = process.env.TRACE = "left";
      await Bun.write(file, "left");
      return seen.filter((trace) => trace !== undefined);
    }`;
}

interface Seen {
  mark: string;
  asked: number;
  vm: string;
  env: Record<string, string>;
  body: string;
}

/** Somebody whom workers ask. */
class Site implements AsyncDisposable {
  readonly asked: string[] = [];
  readonly #server: Server;

  private constructor() {
    this.#server = createServer((request, response) => {
      this.asked.push(request.url!);
      response.end(`you asked for ${request.url}`);
    });
  }

  static async open(): Promise<Site> {
    const site = new Site();
    await once(site.#server.listen(0, "127.0.0.1"), "listening");
    return site;
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  get url(): string {
    return `http://127.0.0.1:${this.port}`;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise((resolve) => this.#server.close(resolve));
  }
}

let site: Site;
let home: TemporaryDirectory;
let runtime: VmTaskRuntime;
let ends: VmEnds;
let gateway: GatewaySandbox;

beforeAll(async () => {
  home = await homeWithImages();
  site = await Site.open();
  runtime = await VmTaskRuntime.open({
    home: home.path,
    slots: 4,
    outboundAllow: [`127.0.0.1:${site.port}`],
  });
  ends = new VmEnds(runtime.host);
  gateway = await GatewaySandbox.open({ runtime: () => runtime, limits: { scheduledMs: 10_000 } });
  await deploy("count", { env: { GREETING: "hello" }, http: { timeoutMs: 20_000 } });
}, SETUP_MS);

afterAll(async () => {
  const { run, shm } = runtime.host.owner;
  await gateway[Symbol.asyncDispose]();
  await site[Symbol.asyncDispose]();
  ends[Symbol.dispose]();
  expect([run, shm].filter((path) => existsSync(path))).toEqual([]);
  home[Symbol.dispose]();
}, TEST_MS);

async function deploy(worker: string, more: object = {}, mark = "one"): Promise<WorkerVersion> {
  const json = { module: { code: counter(mark) }, memoryMiB: 256, ...more };
  return await gateway.json<WorkerVersion>(`/v1/workers/${worker}`, { method: "PUT", json }, 201);
}

async function ask(path: string, init: RequestInit = {}): Promise<Seen> {
  const answer = await gateway.fetch(path, init);
  const text = await answer.text();
  if (answer.status !== 200) throw new Error(`${path} gave ${answer.status}: ${text}`);
  return JSON.parse(text);
}

describe("a deployed JS worker", () => {
  test(
    "answers each request in a fork of its own, which has what the parent had and no more",
    async () => {
      const seen = await Promise.all([
        ask("/w/count/"),
        ask("/w/count/", { method: "POST", body: "b" }),
        ask("/w/count/", { headers: { host: "count.localhost" } }),
      ]);
      expect(seen.map(({ asked }) => asked)).toEqual([101, 101, 101]);
      expect(seen.map(({ body }) => body)).toEqual(["", "b", ""]);
      expect(new Set(seen.map(({ vm }) => vm)).size).toBe(3);
      expect(seen[0]!.env).toEqual({ GREETING: "hello" });
      for (let time = 0; time < 3; time++) {
        expect(await (await gateway.fetch("/w/count/traces")).json()).toEqual([]);
      }
    },
    TEST_MS,
  );

  test(
    "leaves no process and no file of a fork when its answer is over",
    async () => {
      const times: number[] = [];
      const askOnce = async () => {
        const { vm } = await ask("/w/count/");
        const answered = performance.now();
        const { at, pid, dir } = await ends.endOf(vm);
        times.push(Math.max(0, at - answered));
        expect([existsSync(`/proc/${pid}`), existsSync(dir), processesOf(dir)]).toEqual([false, false, []]);
      };
      for (let time = 0; time < 4; time++) await askOnce();
      await Promise.all(Array.from({ length: 6 }, askOnce));
      const { p50, p99, max } = distributionOf(times);
      process.stderr.write(`gone after the answer: p50 ${p50.toFixed(0)}, p99 ${p99.toFixed(0)} ms\n`);
      // A second is what is aimed at, which bench burst measures; a machine may be busy here.
      expect(max).toBeLessThan(10_000);
    },
    TEST_MS,
  );

  test(
    "fails with an answer of its own, or with one of the gateway that says why",
    async () => {
      const own = await gateway.fetch("/w/count/boom");
      expect([own.status, await own.json()]).toMatchObject([500, { code: "WORKER_FAILED" }]);
      const exit = await problemFrom(await gateway.fetch("/w/count/exit"));
      expect(exit).toMatchObject({ status: 502, code: "CHILD_DIED" });
      expect(exit.detail).toContain("process.exit(3)");
      expect((await ask("/w/count/")).asked).toBe(101);
    },
    TEST_MS,
  );

  test(
    "keeps a session in one fork, and sessions apart",
    async () => {
      await deploy("cart", { http: { isolation: { mode: "session", header: "x-session" } } });
      const of = (session: string) => ask("/w/cart/", { headers: { "x-session": session } });
      const first = await of("a");
      expect([first.asked, (await of("a")).asked, (await of("b")).asked]).toEqual([101, 102, 101]);
      expect((await of("a")).vm).toBe(first.vm);
      const tracesOf = async (session: string) =>
        await (await gateway.fetch("/w/cart/traces", { headers: { "x-session": session } })).json();
      expect([await tracesOf("a"), await tracesOf("b")]).toEqual([[], []]);
      expect(await tracesOf("a")).toEqual(["left", "left", "left", "left", "file"]);
    },
    TEST_MS,
  );

  test(
    "is replaced without a request that fails, and stays when its successor does not load",
    async () => {
      const http = { isolation: { mode: "shared" } };
      await deploy("swap", { http });
      await deploy("stay", { http });
      const [old] = await Promise.all([ask("/w/swap/"), ask("/w/stay/")]);
      // Both new versions at once: most of their time is that of one processor.
      await deploy("swap", { http }, "two");
      const json = { module: { code: "throw new Error('never loads')" }, memoryMiB: 256 };
      await gateway.json("/v1/workers/stay", { method: "PUT", json }, 201);
      let next: Seen;
      let worker: WorkerVersion;
      do {
        await delay(200);
        // The old one answers until the new one is ready.
        next = await ask("/w/swap/");
        expect(await ask("/w/stay/")).toMatchObject({ mark: "one" });
        worker = await gateway.json<WorkerVersion>("/v1/workers/stay");
      } while (next.mark === "one" || worker.state !== "failed");
      expect(next.mark).toBe("two");
      expect(next.asked).toBeGreaterThan(100);
      expect(next.vm).not.toBe(old.vm);
      expect(worker.error).toMatchObject({ code: "WORKER_LOAD_FAILED" });
      expect(worker.error!.message).toContain("never loads");
    },
    TEST_MS,
  );

  test(
    "runs the tasks of jobs: input in, value out, and what it prints in the log",
    async () => {
      await deploy("double");
      const inputs = [1, 21, "bad", "long"];
      const hang = { worker: "double", timeoutMs: 1500, tasks: { inputs: ["hang"] } };
      const [{ id }, hanging] = await Promise.all([
        gateway.submit({ worker: "double", tasks: { inputs } }),
        gateway.submit(hang),
      ]);
      const resultsOf = async (job: string) => {
        await (await gateway.fetch(`/v1/jobs/${job}/events`)).text();
        const lines = (await (await gateway.fetch(`/v1/jobs/${job}/results`)).text()).trim().split("\n");
        return lines.map((line) => JSON.parse(line));
      };
      const results = await resultsOf(id);
      expect(results[0].value).toEqual({ doubled: 2, asked: 101, index: 0, env: "4" });
      expect(results[1].value).toEqual({ doubled: 42, asked: 101, index: 1, env: "4" });
      expect(results[0]).toMatchObject({ state: "succeeded", stdout: "" });
      expect(results[2].value).toBeUndefined();
      expect(results[2]).toMatchObject({ state: "failed", stdout: "", error: { code: "TASK_FAILED" } });
      expect(results[2].error.message).toContain("it is bad");
      expect(results[3]).toMatchObject({ state: "failed", error: { code: "TASK_FAILED" } });
      expect(results[3].error.message).toContain("takes 1048578 bytes as JSON");
      const [hung] = await resultsOf(hanging.id);
      expect(hung).toMatchObject({ state: "failed", error: { code: "TASK_TIMEOUT" } });
      const log = await (await gateway.fetch(`/v1/jobs/${id}/logs?task=2&follow=false`)).text();
      expect(log).toContain('got \\"bad\\"');
      expect(log).toContain("Error: it is bad");
    },
    TEST_MS,
  );

  test(
    "asks others through its host: what it allows itself, at addresses that the operator allows",
    async () => {
      const allow = [`127.0.0.1:${site.port}`, "127.0.0.1:1"];
      await deploy("asks", { allow, http: { isolation: { mode: "shared" } } });
      const asking = async (url: string) => {
        const answer = await gateway.fetch("/w/asks/ask", { method: "POST", body: url });
        return [answer.status, await answer.text()];
      };
      expect(await asking(`${site.url}/here`)).toEqual([200, "200 you asked for /here"]);
      const [, elsewhere] = await asking("http://example.com/");
      expect(elsewhere).toContain("example.com:80");
      expect(elsewhere).toContain("allow");
      // The worker allows itself what the operator does not.
      expect((await asking("http://127.0.0.1:1/"))[0]).toBe(418);
      expect(site.asked).toEqual(["/here"]);
    },
    TEST_MS,
  );

  test(
    "has its scheduled() called in a fork of its own, with what it gives to waitUntil",
    async () => {
      const call = (cron: string) =>
        gateway.json<ScheduledRun>("/v1/workers/count/scheduled", { method: "POST", json: { cron } });
      // Its parent is ready then, whichever test is the first.
      await ask("/w/count/");
      const good = await call("0 0 1 1 *");
      expect(good).toMatchObject({ name: "count", version: 1, cron: "0 0 1 1 *", outcome: "succeeded" });
      expect(good.ms).toBeGreaterThanOrEqual(49);
      // A version with crons needs a scheduled(): that is found out while the second call lasts for ever.
      const module = { code: "export default { fetch() {} }" };
      const without = { module, memoryMiB: 256, crons: ["0 0 1 1 *"] };
      const failing = Promise.all(["0 1 1 1 *", "0 2 1 1 *", "0 3 1 1 *"].map(call));
      await gateway.json("/v1/workers/never", { method: "PUT", json: without }, 201);
      const never = await gateway.problem("/w/never/");
      expect(never).toMatchObject({ status: 502, code: "WORKER_LOAD_FAILED" });
      expect(never.detail).toContain("it has crons, but no scheduled(); it has fetch()");
      const failures = await failing;
      expect(failures.map(({ outcome, error }) => [outcome, error?.code])).toEqual([
        ["failed", "TASK_FAILED"],
        ["failed", "WORKER_TIMEOUT"],
        ["failed", "TASK_FAILED"],
      ]);
      expect(failures[0]!.error!.message).toContain("it is night");
      expect(failures[2]!.error!.message).toContain("1 of 2 were rejected");
      const { items } = await gateway.json<{ items: WorkerLogRecord[] }>("/v1/workers/count/logs");
      const of = ({ vm }: ScheduledRun) => items.filter((item) => item.vm === vm).map(({ text }) => text);
      expect(of(good)).toEqual(["called for 0 0 1 1 * 101 hello"]);
      expect(of(failures[0]!).join()).toMatch(/Error: it is night\n.*scheduled/);
      expect(of(failures[2]!).join()).toContain("it is late");
    },
    TEST_MS,
  );

  test(
    "has a fork ready for the next request, which is as any other, and for that one alone",
    async () => {
      await deploy("ahead", { http: { ahead: 1 } });
      const stats = () => runtime.requests.stats().find(({ name }) => name === "ahead")!.stats;
      const first = await ask("/w/ahead/");
      const vms = new Set([first.vm]);
      for (const used of [1, 2]) {
        await eventually(() => stats().children.spare === 1);
        const next = await ask("/w/ahead/", { method: "POST", body: "next" });
        expect(next).toMatchObject({ asked: 101, body: "next" });
        expect(stats()).toMatchObject({ usedAhead: used, unused: 0 });
        vms.add(next.vm);
      }
      expect(vms.size).toBe(3);
      const exit = await gateway.fetch("/w/ahead/exit");
      expect(exit.status).toBe(502);
      const text = await (await gateway.fetch("/metrics")).text();
      const of = (metric: string) =>
        Number(
          text
            .split("\n")
            .find((line) => line.startsWith(`${metric} `))
            ?.slice(metric.length),
        );
      expect(of("flurry_worker_spares_used_total")).toBeGreaterThanOrEqual(2);
      expect(of('flurry_worker_requests_total{outcome="child-died"}')).toBeGreaterThanOrEqual(1);
    },
    TEST_MS,
  );
});
