import { rm } from "node:fs/promises";
import { join } from "node:path";
import type { Image } from "../guest-agent/image/mod.ts";
import type { AgentProcess } from "../guest-agent/protocol/mod.ts";
import type { Child } from "../runtime/fork/child.ts";
import { VmTree } from "../runtime/fork/family/vm-tree.ts";
import { Generation } from "../runtime/fork/generation.ts";
import { freezeLive } from "../runtime/fork/live-freeze.ts";
import { openParent } from "../runtime/fork/open-parent.ts";
import type { Parent } from "../runtime/fork/parent.ts";
import { taskWarmUp } from "../runtime/jobs/task.ts";
import { type Distribution, distributionOf } from "../runtime/stats.ts";
import type { Host } from "../runtime/vm/host.ts";
import { buildGuestProgram, REFORK_SOURCE } from "./guest/build.ts";

const MIGRATION_MS = 120_000;
const PROGRAM = "/usr/local/bin/refork";
/** MiB that each generation of the chain writes. */
const CHAIN_MIB = 16;

export interface ReforkBenchOptions {
  host: Host;
  image: Image;
  memMiB: number;
  /** MiB written before a fork. */
  dirtied: readonly number[];
  /** Forks for each figure. */
  samples: number;
  /** Generations of the chain. */
  depth: number;
  /** Children of the fork that a program calls. */
  children: number;
  onProgress?: ((stage: string) => void) | undefined;
  signal?: AbortSignal | undefined;
}

/** Times in ms. */
export interface ReforkFigures {
  /** Largest step of CLOCK_MONOTONIC in a program of the guest. */
  gapMs: Distribution;
  /** For which its CPUs stood still, which is no time for that clock. */
  stoppedMs: Distribution;
  /** Both: what the world sees of it. */
  pauseMs: Distribution;
  /** From the first step to the first answer of a child, from a waiting shell where the image has any. */
  totalMs: Distribution;
  /** Bytes that the VM had written since its start. */
  deltaBytes: Distribution;
}

/** QEMU's own ways for the same VM, which stands still meanwhile. Undefined before QEMU 9, which has not both. */
export interface MigrationFigures {
  fileMs: Distribution | undefined;
  mappedRamMs: Distribution | undefined;
}

export interface ReforkBenchResult {
  accel: string;
  qemu: string;
  cores: number;
  memMiB: number;
  dirtied: ({ mib: number } & ReforkFigures & MigrationFigures)[];
  /** Each generation is forked from the one before, and has written 16 MiB more. */
  generations: ({ generation: number } & ReforkFigures)[];
  /** One call of a program, with as many shells waiting as it has children; by the guest's clock. */
  forkCall: { children: number; callMs: Distribution; allEndedMs: Distribution };
}

interface Sample {
  gapMs: number;
  stoppedMs: number;
  pauseMs: number;
  totalMs: number;
  deltaBytes: number;
}

/** Measures forks of VMs that go on. */
export async function benchRefork(options: ReforkBenchOptions): Promise<ReforkBenchResult> {
  const { host, image, memMiB, onProgress, signal } = options;
  onProgress?.("a parent");
  const { parent, origin } = await openParent({
    ...{ host, image, memMiB, signal },
    files: [{ path: PROGRAM, data: await buildGuestProgram(REFORK_SOURCE, { signal }), mode: 0o755 }],
    warmUp: taskWarmUp(),
  });
  await using _parent = parent;
  const dirtied: ReforkBenchResult["dirtied"] = [];
  for (const mib of options.dirtied) {
    onProgress?.(`forks after ${mib} MiB were written`);
    dirtied.push({ mib, ...(await benchDirtied(parent, mib, options)) });
  }
  onProgress?.(`${options.depth} generations`);
  const generations = await benchChain(parent, options);
  onProgress?.(`a program that forks ${options.children} children`);
  const forkCall = await benchCall(parent, options);
  return {
    ...{ accel: origin.accel.accel, qemu: host.qemu.version, cores: host.cores, memMiB },
    ...{ dirtied, generations, forkCall },
  };
}

async function benchDirtied(parent: Parent, mib: number, { samples, signal }: ReforkBenchOptions) {
  const all: Sample[] = [];
  const fileMs: number[] = [];
  const mappedRamMs: number[] = [];
  for (let index = 0; index < samples; index++) {
    await parent.shells.keep(1, signal);
    await using child = await parent.fork({ identity: { index, hostname: "refork" }, signal });
    const sampler = await Sampler.start(child, mib);
    const { sample, grandchild } = await forkOnce(child, sampler, signal);
    await grandchild[Symbol.asyncDispose]();
    all.push(sample);
    if (parent.host.qemu.major < 9) continue;
    fileMs.push(await migrate(child, false));
    mappedRamMs.push(await migrate(child, true));
  }
  return {
    ...figuresOf(all),
    fileMs: fileMs.length > 0 ? distributionOf(fileMs) : undefined,
    mappedRamMs: mappedRamMs.length > 0 ? distributionOf(mappedRamMs) : undefined,
  };
}

async function benchChain(parent: Parent, { samples, depth, signal }: ReforkBenchOptions) {
  const byGeneration: Sample[][] = Array.from({ length: depth }, () => []);
  for (let index = 0; index < samples; index++) {
    await using chain = new AsyncDisposableStack();
    await parent.shells.keep(1, signal);
    let child = chain.use(await parent.fork({ identity: { index, hostname: "refork" }, signal }));
    for (const all of byGeneration) {
      const sampler = await Sampler.start(child, CHAIN_MIB);
      const { sample, grandchild } = await forkOnce(child, sampler, signal);
      all.push(sample);
      child = chain.use(grandchild);
    }
  }
  return byGeneration.map((all, index) => ({ generation: index + 1, ...figuresOf(all) }));
}

async function benchCall(parent: Parent, { samples, children, signal }: ReforkBenchOptions) {
  const callMs: number[] = [];
  const allEndedMs: number[] = [];
  for (let index = 0; index < samples; index++) {
    await using tree = new VmTree({ place: () => ({ [Symbol.dispose]: () => undefined }) });
    const { child } = await tree.root((node) =>
      parent.fork({ identity: { index, hostname: "refork" }, onCall: (call) => node.onCall(call), signal }),
    );
    await parent.shells.keep(children, signal);
    const { stdout, stderr, code } = await child.agent.run([PROGRAM, "fork", String(children)], { signal });
    const times = /^forked 0 (\d+)\njoined (\d+) (\d+)\n$/.exec(stdout);
    if (code !== 0 || !times || Number(times[2]) !== children) {
      throw new Error(`The guest's program failed: ${stdout}${stderr}`);
    }
    callMs.push(Number(times[1]) / 1e6);
    allEndedMs.push(Number(times[3]) / 1e6);
    await parent.shells.keep(0, signal);
  }
  return { children, callMs: distributionOf(callMs), allEndedMs: distributionOf(allEndedMs) };
}

/** A fork of a VM that goes on, up to its first child's first answer. */
async function forkOnce(child: Child, sampler: Sampler, signal: AbortSignal | undefined) {
  await sampler.gap();
  const began = performance.now();
  const freeze = await freezeLive(child, { signal });
  await using generation = await Generation.of(child, freeze, signal);
  const grandchild = await generation.fork({ identity: { index: 1, hostname: "refork-1" }, signal });
  const totalMs = performance.now() - began;
  const { stoppedMs, delta } = freeze;
  const gapMs = await sampler.gap();
  return {
    sample: { gapMs, stoppedMs, pauseMs: gapMs + stoppedMs, totalMs, deltaBytes: delta.data.length },
    grandchild,
  };
}

/** Milliseconds for which a VM stands still while QEMU writes all of it into a file. */
async function migrate({ qmp, dir }: Child, isMapped: boolean): Promise<number> {
  const path = join(dir, "migration");
  const capability = (name: "events" | "mapped-ram", state: boolean) => ({ capability: name, state });
  const began = performance.now();
  await qmp.execute("stop", {});
  await qmp.execute("migrate-set-capabilities", {
    capabilities: [capability("events", true), ...(isMapped ? [capability("mapped-ram", true)] : [])],
  });
  const done = qmp.expect("MIGRATION", {
    timeoutMs: MIGRATION_MS,
    filter: ({ data }) => data.status === "completed" || data.status === "failed",
  });
  await qmp.execute("migrate", { uri: `file:${path}` });
  const { data } = await done;
  if (data.status !== "completed") throw new Error("QEMU could not write the VM into a file");
  // QEMU says that it is complete before it may go on, and nothing when it may.
  while ((await qmp.execute("query-status", {})).status === "finish-migrate");
  await qmp.execute("cont", {});
  const ms = performance.now() - began;
  await rm(path);
  if (isMapped)
    await qmp.execute("migrate-set-capabilities", { capabilities: [capability("mapped-ram", false)] });
  return ms;
}

/** The program of the guest that looks at its clock. */
class Sampler {
  readonly #lines: AsyncIterator<string>;
  readonly #stdin: WritableStreamDefaultWriter<Uint8Array>;

  private constructor({ stdout, stdin }: AgentProcess) {
    if (!stdin) throw new Error("The guest's program has no input");
    this.#lines = linesOf(stdout);
    this.#stdin = stdin.getWriter();
  }

  static async start(child: Child, mib: number): Promise<Sampler> {
    const sampler = new Sampler(await child.agent.exec([PROGRAM, "sample", String(mib)], { stdin: true }));
    const first = await sampler.#next();
    if (first !== "ready") throw new Error(`The guest's program said "${first}"`);
    return sampler;
  }

  /** Largest step of the guest's clock since it was last asked, in ms. */
  async gap(): Promise<number> {
    await this.#stdin.write(Buffer.from("\n"));
    const line = await this.#next();
    const ns = /^max (\d+)$/.exec(line)?.[1];
    if (ns === undefined) throw new Error(`The guest's program said "${line}"`);
    return Number(ns) / 1e6;
  }

  async #next(): Promise<string> {
    const { value, done } = await this.#lines.next();
    if (done) throw new Error("The guest's program has ended");
    return value;
  }
}

async function* linesOf(stream: ReadableStream<Uint8Array>): AsyncGenerator<string> {
  let rest = "";
  for await (const chunk of stream) {
    const lines = (rest + Buffer.from(chunk).toString()).split("\n");
    rest = lines.pop() ?? "";
    yield* lines;
  }
}

function figuresOf(samples: readonly Sample[]): ReforkFigures {
  const distribution = (figure: keyof Sample) => distributionOf(samples.map((sample) => sample[figure]));
  return {
    gapMs: distribution("gapMs"),
    stoppedMs: distribution("stoppedMs"),
    pauseMs: distribution("pauseMs"),
    totalMs: distribution("totalMs"),
    deltaBytes: distribution("deltaBytes"),
  };
}
