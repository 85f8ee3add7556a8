import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { FlurryClient } from "../runtime/client/mod.ts";
import { type Distribution, distributionOf } from "../runtime/stats.ts";
import { SAMPLE_SUBMIT } from "./gateway-sample.ts";

export interface HttpBenchOptions {
  /** Requests of each kind at each concurrency. */
  requests: number;
  /** Tasks of the job that runs without VMs. */
  tasks: number;
  onProgress?: ((stage: string) => void) | undefined;
  signal?: AbortSignal | undefined;
}

/** One kind of request, with the same sent to a bare server in between. */
export interface RequestFigures {
  requestsPerSecond: number;
  latencyMs: Distribution;
  bare: { requestsPerSecond: number; latencyMs: Distribution };
  /** Above the bare server, at the same rank. */
  addedMs: { p50: number; p99: number };
  /** p50 of the gateway by that of the bare server. */
  ratio: number;
}

export interface HttpBenchResult {
  /** By the number of requests that are under way at a time. */
  submit: Record<string, RequestFigures>;
  read: Record<string, RequestFigures>;
  /** A job whose tasks end as they begin: claim, run and record, without VMs. */
  scripted: { tasks: number; seconds: number; tasksPerSecond: number };
}

const CONCURRENCIES = [1, 32];
/** Gateway and bare server take turns, so that what else the machine does meets both. */
const ROUNDS = 4;

/** Measures what the gateway adds to HTTP, in servers of their own processes. */
export async function benchHttp(options: HttpBenchOptions): Promise<HttpBenchResult> {
  const { requests, tasks, onProgress, signal } = options;
  const dir = await mkdtemp(join(tmpdir(), "flurry-bench-"));
  await using _dir = { [Symbol.asyncDispose]: () => rm(dir, { recursive: true, force: true }) };
  await using bare = await startServer(["bare"], signal);
  const result: HttpBenchResult = { submit: {}, read: {}, scripted: await runScripted(options, dir) };
  await using held = await startServer(["held", join(dir, "held")], signal);
  const { job } = await new FlurryClient({ url: held.url, signal }).jobs.submit(SAMPLE_SUBMIT);
  const body = JSON.stringify(SAMPLE_SUBMIT);
  const submit = (url: string) => request(`${url}/v1/jobs`, { method: "POST", body }, signal);
  const read = (url: string) => request(`${url}/v1/jobs/${job.id}`, { method: "GET" }, signal);
  for (const concurrency of CONCURRENCIES) {
    onProgress?.(`${tasks} tasks done; submitting, ${concurrency} at a time`);
    result.submit[concurrency] = await compare(submit, held.url, bare.url, { requests, concurrency });
    onProgress?.(`reading, ${concurrency} at a time`);
    result.read[concurrency] = await compare(read, held.url, bare.url, { requests, concurrency });
  }
  return result;
}

async function runScripted({ tasks, onProgress, signal }: HttpBenchOptions, dir: string) {
  onProgress?.(`${tasks} tasks without VMs`);
  await using instant = await startServer(["instant", join(dir, "instant")], signal);
  const client = new FlurryClient({ url: instant.url, signal });
  const { job } = await client.jobs.submit({ ...SAMPLE_SUBMIT, tasks: { count: tasks } });
  const done = await client.jobs.wait(job.id);
  // By the gateway's own times: the reader of a thousand events is behind.
  const seconds = (Date.parse(done.endedAt ?? "") - Date.parse(done.startedAt ?? "")) / 1000;
  return { tasks, seconds, tasksPerSecond: tasks / seconds };
}

type Send = (url: string) => Promise<void>;
type Load = { requests: number; concurrency: number };

async function compare(send: Send, gateway: string, bare: string, load: Load): Promise<RequestFigures> {
  const samples = { gateway: new Samples(), bare: new Samples() };
  const part = { ...load, requests: Math.max(load.concurrency, Math.ceil(load.requests / ROUNDS)) };
  // Both have compiled what they run before anything counts.
  await new Samples().add(() => send(bare), part);
  await new Samples().add(() => send(gateway), part);
  for (let round = 0; round < ROUNDS; round++) {
    await samples.bare.add(() => send(bare), part);
    await samples.gateway.add(() => send(gateway), part);
  }
  const [own, other] = [samples.gateway.figures(), samples.bare.figures()];
  return {
    ...own,
    bare: other,
    addedMs: {
      p50: own.latencyMs.p50 - other.latencyMs.p50,
      p99: own.latencyMs.p99 - other.latencyMs.p99,
    },
    ratio: own.latencyMs.p50 / other.latencyMs.p50,
  };
}

/** Latencies of requests, and the time that they took in all. */
class Samples {
  readonly #latencies: number[] = [];
  #totalMs = 0;

  async add(send: () => Promise<void>, { requests, concurrency }: Load): Promise<void> {
    let left = requests;
    const began = performance.now();
    const sender = async () => {
      while (left > 0) {
        left -= 1;
        const sent = performance.now();
        await send();
        this.#latencies.push(performance.now() - sent);
      }
    };
    await Promise.all(Array.from({ length: concurrency }, sender));
    this.#totalMs += performance.now() - began;
  }

  figures() {
    const requestsPerSecond = (1000 * this.#latencies.length) / this.#totalMs;
    return { requestsPerSecond, latencyMs: distributionOf(this.#latencies) };
  }
}

const HEADERS = { "content-type": "application/json" };

async function request(url: string, init: RequestInit, signal: AbortSignal | undefined): Promise<void> {
  const response = await fetch(url, { ...init, headers: HEADERS, ...(signal && { signal }) });
  const text = await response.text();
  if (!response.ok) throw new Error(`${url} answered ${response.status}: ${text}`);
}

/** Starts a server of gateway-server.ts; disposing ends it. */
async function startServer(args: readonly string[], signal: AbortSignal | undefined) {
  signal?.throwIfAborted();
  const program = fileURLToPath(new URL("./gateway-server.ts", import.meta.url));
  const runtime = process.versions.deno === undefined ? [] : ["run", "--allow-all"];
  const child = spawn(process.execPath, [...runtime, program, ...args], {
    stdio: ["pipe", "pipe", "inherit"],
  });
  const exited = once(child, "exit");
  const lines = createInterface({ input: child.stdout });
  const [url]: string[] = await Promise.race([
    once(lines, "line"),
    exited.then(([code]) => {
      throw new Error(`The server "${args[0]}" of the bench ended with ${code}`);
    }),
  ]);
  return {
    url: url!,
    [Symbol.asyncDispose]: async () => {
      child.stdin.end();
      await exited;
    },
  };
}
