import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { bundleWorker, type WorkerBundle } from "../guest-agent/worker-host/bundle.ts";
import { bootVm } from "../runtime/fork/boot.ts";
import { heldBytesOf, privateBytesOf } from "../runtime/fork/child.ts";
import { openGateway } from "../runtime/gateway/open.ts";
import { type Distribution, distributionOf } from "../runtime/stats.ts";
import { processesOf } from "../runtime/vm/owner.ts";
import { jsImage } from "../runtime/workers/js/js-image.ts";
import { loadColdWorker } from "../runtime/workers/js/js-parent.ts";
import type { RouterStats } from "../runtime/workers/scaling/router-stats.ts";
import { VmTaskRuntime } from "../runtime/workers/vm-task-runtime.ts";
import { type Asked, ask, askAll, deployed, serveOnHost } from "./burst-requests.ts";
import { VmEnds } from "./vm-ends.ts";

const MIB = 1024 * 1024;
/** How often the memory of all VMs is looked at while requests are under way, in ms. */
const SAMPLE_MS = 100;
/** Forks ahead of need at most, as by default. */
const AHEAD = 4;
/** Time between two looks whether it is quiet, in ms: longer than from an answer to a fork for the next one. */
const QUIET_MS = 10;

export interface BurstBenchOptions {
  /** Requests in flight at once. */
  n: number;
  memMiB: number;
  /** VMs that are booted for one request each. */
  boots: number;
  /** Requests of each kind that come one after the other, each when nothing else is under way. */
  alone: number;
  onProgress?: ((stage: string) => void) | undefined;
  signal?: AbortSignal | undefined;
}

/** A step from 0 requests to n. Times in milliseconds. */
export interface BurstFigures {
  /** From the request to the first byte of its answer. */
  ttfbMs: Distribution;
  errors: number;
  /** Children that were forked for it. */
  children: number;
  /** Host memory of all VMs together beyond the shared image, the most that was seen. */
  privateBytes: number;
}

export interface BurstBenchResult {
  accel: string;
  cores: number;
  /** Children at the same time. */
  slots: number;
  n: number;
  memMiB: number;
  request: BurstFigures;
  /** The same where forks are made ahead of need. */
  ahead: BurstFigures;
  /** Requests that come one by one, each to a fork: made for it, and made ahead of it. */
  alone: { forked: Distribution; ahead: Distribution };
  /**
   * From the end of an answer to the moment when nothing is left of its VM: no process, no file. Of the burst
   * to a fork for each request, and of the requests that come alone.
   */
  goneMs: Distribution;
  shared: BurstFigures;
  /** The same app on plain Bun on the host. */
  host: { ttfbMs: Distribution; errors: number };
  /** The same VM, booted for each request, one after the other. */
  cold: { ttfbMs: Distribution; boots: number; privateBytes: number };
}

/** Measures what a burst of requests meets: fresh forks, shared forks, no VM, and booted VMs. */
export async function benchBurst(options: BurstBenchOptions): Promise<BurstBenchResult> {
  const { n, memMiB, boots, alone: turns, onProgress, signal } = options;
  const app = join(import.meta.dirname, "guest", "burst-app.ts");
  const bundle = await bundleWorker(app, { signal });
  onProgress?.("the app on the host");
  const host = await onHost(app, n);
  const dir = await mkdtemp(join(tmpdir(), "flurry-bench-"));
  await using _dir = { [Symbol.asyncDispose]: () => rm(dir, { recursive: true, force: true }) };
  const runtime = await VmTaskRuntime.open({ signal });
  await using gateway = await openGateway({
    dir,
    listen: { hostname: "127.0.0.1", port: 0 },
    runtime: () => runtime,
  });
  using ends = new VmEnds(runtime.host);
  const answered: Asked[] = [];
  const deploy = (name: string, mode: "request" | "shared", ahead: number) =>
    deployed(gateway.url, name, { bundle, memMiB, mode, ahead, signal });
  const figures = async (name: string, url: string, kept: Asked[] = []): Promise<BurstFigures> => {
    onProgress?.(`${n} requests at once, ${name}`);
    const forksBefore = statsOf(runtime, name).forks;
    using memory = new MemoryWatch(runtime.host.owner.run);
    const asked = await askAll(url, n);
    kept.push(...asked);
    return {
      ...shown(asked),
      children: statsOf(runtime, name).forks - forksBefore,
      privateBytes: memory.most,
    };
  };
  const requestUrl = await deploy("request", "request", 0);
  const aheadUrl = await deploy("ahead", "request", AHEAD);
  onProgress?.("requests that come one by one");
  const { forked, ahead: spare } = await oneByOne(runtime, { requestUrl, aheadUrl, turns, signal });
  answered.push(...forked, ...spare);
  const request = await figures("request", requestUrl, answered);
  const goneMs = distributionOf(await goneAfter(answered, ends));
  await quiet(runtime, signal);
  const ahead = await figures("ahead", aheadUrl);
  const shared = await figures("shared", await deploy("shared", "shared", 0));
  onProgress?.(`${boots} VMs that are booted`);
  const cold = await coldBoots(runtime, bundle, options);
  const { accel = "tcg", cores, slots } = runtime;
  const alone = { forked: ttfbOf(forked), ahead: ttfbOf(spare) };
  return { accel, cores, slots, n, memMiB, request, ahead, alone, goneMs, shared, host, cold };
}

async function onHost(app: string, n: number): Promise<BurstBenchResult["host"]> {
  await using server = await serveOnHost(app);
  // As the parent of a worker has its modules loaded before anyone asks.
  await ask(server.url);
  return shown(await askAll(server.url, n));
}

function shown(asked: readonly Asked[]): { ttfbMs: Distribution; errors: number } {
  const answered = asked.filter(({ ok }) => ok);
  return { ttfbMs: ttfbOf(answered), errors: asked.length - answered.length };
}

function ttfbOf(asked: readonly Asked[]): Distribution {
  return distributionOf(asked.map(({ ttfbMs }) => ttfbMs));
}

/** Milliseconds from each answer's end to that of its VM; 0 for a VM that was gone before. */
async function goneAfter(asked: readonly Asked[], ends: VmEnds): Promise<number[]> {
  const answered = asked.flatMap(({ endedAt, vm }) => (vm === undefined ? [] : [{ endedAt, vm }]));
  return await Promise.all(
    answered.map(async ({ endedAt, vm }) => Math.max(0, (await ends.endOf(vm)).at - endedAt)),
  );
}

interface OneByOne {
  requestUrl: string;
  aheadUrl: string;
  /** Requests to each. */
  turns: number;
  signal: AbortSignal | undefined;
}

/** Asks both in turn, so that whatever else the machine does meets both. */
async function oneByOne(
  runtime: VmTaskRuntime,
  { requestUrl, aheadUrl, turns, signal }: OneByOne,
): Promise<{ forked: Asked[]; ahead: Asked[] }> {
  const forked: Asked[] = [];
  const ahead: Asked[] = [];
  for (let turn = 0; turn < turns; turn += 1) {
    await quiet(runtime, signal);
    forked.push(await ask(requestUrl));
    await quiet(runtime, signal);
    const before = statsOf(runtime, "ahead").usedAhead;
    const asked = await ask(aheadUrl);
    // There is none ready where the host had no room for it.
    if (statsOf(runtime, "ahead").usedAhead > before) ahead.push(asked);
  }
  return { forked, ahead };
}

/** Waits until no child starts, serves or ends for some time. Nobody tells. */
async function quiet(runtime: VmTaskRuntime, signal: AbortSignal | undefined): Promise<void> {
  for (let looks = 0; looks < 3; looks += 1) {
    const { starting, busy, ending } = runtime.requests.figures().children;
    signal?.throwIfAborted();
    if (starting + busy + ending > 0) looks = 0;
    await new Promise((resolve) => setTimeout(resolve, QUIET_MS));
  }
}

function statsOf(runtime: VmTaskRuntime, name: string): RouterStats {
  return runtime.requests.stats().find((one) => one.name === name)!.stats;
}

async function coldBoots(
  { host, accel = "tcg" }: VmTaskRuntime,
  bundle: WorkerBundle,
  { memMiB, boots, signal }: BurstBenchOptions,
): Promise<BurstBenchResult["cold"]> {
  const image = await jsImage({ home: host.home, signal });
  const times: number[] = [];
  let privateBytes = 0;
  for (let boot = 0; boot < boots; boot += 1) {
    const began = performance.now();
    await using vm = await bootVm({
      ...{ host, boot: image, ram: "anonymous", signal },
      profile: { accel, memMiB, cpus: 1, disk: image.disk, workerPort: true },
    });
    await using worker = await loadColdWorker(vm, bundle, signal);
    const answer = await worker.fetch({ method: "GET", url: "http://localhost/items/7" }, { signal });
    times.push(performance.now() - began);
    privateBytes = Math.max(privateBytes, privateBytesOf(vm.qemu.pid));
    await answer.body.cancel();
  }
  return { ttfbMs: distributionOf(times), boots, privateBytes };
}

/** The most memory that all VMs have had together. Nothing tells of a process's memory but looking. */
class MemoryWatch implements Disposable {
  most = 0;
  readonly #timer: ReturnType<typeof setInterval>;

  constructor(run: string) {
    const look = () => {
      const now = processesOf(run).reduce((sum, pid) => sum + heldBytesOf(pid), 0);
      this.most = Math.max(this.most, now);
    };
    this.#timer = setInterval(look, SAMPLE_MS);
  }

  [Symbol.dispose](): void {
    clearInterval(this.#timer);
  }
}

/** How many times sooner a burst is answered by forks than by booted VMs. */
export function timesSooner({ request, cold }: BurstBenchResult): number {
  return cold.ttfbMs.p50 / request.ttfbMs.p50;
}

/** Bytes of one fork, beyond what all share. */
export function bytesEach({ request, slots, n }: BurstBenchResult): number {
  return Math.round(request.privateBytes / Math.min(slots, n) / MIB) * MIB;
}
