import { rm } from "node:fs/promises";
import type { Image } from "../guest-agent/image/mod.ts";
import { type BootedVm, bootVm } from "../runtime/fork/boot.ts";
import { type Child, privateBytesOf } from "../runtime/fork/child.ts";
import { type FrozenVm, freeze } from "../runtime/fork/freeze.ts";
import { kernelOf } from "../runtime/fork/open-parent.ts";
import { Parent } from "../runtime/fork/parent.ts";
import { ParentStore, parentKey } from "../runtime/fork/parent-store.ts";
import { taskWarmUp } from "../runtime/jobs/task.ts";
import { type Distribution, distributionOf } from "../runtime/stats.ts";
import { chooseAccelerator } from "../runtime/vm/accelerator.ts";
import type { Host } from "../runtime/vm/host.ts";
import { commandLine, type MachineProfile } from "../runtime/vm/profile.ts";
import { QemuProcess } from "../runtime/vm/qemu-process.ts";
import { Shell } from "../runtime/vm/shell.ts";

export interface ForkBenchOptions {
  host: Host;
  image: Image;
  /** Children. */
  n: number;
  memMiB: number;
  /** VMs that are booted and frozen: samples of the boot and of the pause. */
  boots: number;
  onProgress?: (stage: string) => void;
  signal?: AbortSignal;
}

/** What is measured from a waiting shell, and from none. */
export interface WarmAndCold {
  warm: Distribution;
  cold: Distribution;
}

/** What the identity takes of a child's time until its first answer, by the guest's clock. */
export interface IdentifyTimes {
  /** What the agent does: entropy, clock, names, ids. */
  kernelMs: Distribution;
  /** Processes with a fork hook; the parent of this benchmark has none. */
  hooksMs: Distribution;
  totalMs: Distribution;
}

/** Times in milliseconds, sizes in bytes. */
export interface ForkBenchResult {
  accel: string;
  qemu: string;
  cores: number;
  memMiB: number;
  n: number;
  /** From the start of QEMU to the guest's first answer. */
  coldBootMs: Distribution;
  /** The same machine without a guest, from spawn to the first QMP answer. */
  bareQemuStartMs: Distribution;
  barePrivateBytes: Distribution;
  descriptorBytes: number;
  /** From `stop` to the complete device state. */
  pauseMs: Distribution;
  /** From spawn to a shell that waits for its device stream. */
  shellStartMs: Distribution;
  /** From the call of fork to running CPUs, one child at a time; cold ones start their shell on the way. */
  forkRunningMs: WarmAndCold;
  /** From the call of fork to the child's proven identity. */
  forkAnswerMs: WarmAndCold;
  /** Of those that came from waiting shells, one at a time. */
  identifyMs: IdentifyTimes;
  /** `n` forks at once from waiting shells, until the last one runs. */
  allRunningMs: number;
  allAnsweredMs: number;
  /** Of the `n` children while they are idle. */
  privateBytesPerChild: Distribution;
  /** Forks that failed. */
  failures: number;
}

/** Milliseconds in which children come to rest before their memory is counted. */
const SETTLE_MS = 1000;

/** Measures forks on this machine, each time round the real operation. */
export async function benchFork(options: ForkBenchOptions): Promise<ForkBenchResult> {
  const { host, image, n, memMiB, onProgress, signal } = options;
  const { accel } = await chooseAccelerator({
    host,
    boot: image,
    kernel: kernelOf(image),
    disk: image.disk,
    ...(signal && { signal }),
  });
  const profile: MachineProfile = { accel, memMiB, cpus: 1, disk: image.disk };
  const bare = await benchBare(options, profile);
  const { frozen, coldBootMs, pauseMs } = await benchBoots(options, profile);
  onProgress?.("keeping the parent on disk");
  await using kept = await keep(host, frozen, signal);
  await using parent = new Parent({ host, profile, descriptor: kept.descriptor, imagePath: kept.imagePath });
  const forks = new ForkRuns(parent, signal);
  onProgress?.(`${n} forks from waiting shells, one by one`);
  const shellStartMs = await benchShells(options, profile, kept.imagePath);
  const warm = await forks.oneByOne(n, true);
  onProgress?.("forks without waiting shells, one by one");
  const cold = await forks.oneByOne(Math.min(n, 16), false);
  onProgress?.(`${n} forks at once`);
  const together = await forks.together(n);
  return {
    accel,
    qemu: host.qemu.version,
    cores: host.cores,
    memMiB,
    n,
    coldBootMs,
    ...bare,
    descriptorBytes: kept.descriptorBytes,
    pauseMs,
    shellStartMs,
    forkRunningMs: { warm: distributionOf(warm.running), cold: distributionOf(cold.running) },
    forkAnswerMs: { warm: distributionOf(warm.answer), cold: distributionOf(cold.answer) },
    identifyMs: identifyTimes(warm.proofs),
    ...together,
    failures: forks.failures,
  };
}

function identifyTimes(proofs: readonly Child["proof"][]): IdentifyTimes {
  const distribution = (ns: (read: Child["proof"]["read"]) => number) =>
    distributionOf(proofs.map(({ read }) => ns(read) / 1e6));
  return {
    kernelMs: distribution(({ kernelNs }) => kernelNs),
    hooksMs: distribution(({ tookNs, kernelNs }) => tookNs - kernelNs),
    totalMs: distribution(({ tookNs }) => tookNs),
  };
}

async function benchBare({ host, n, onProgress, signal }: ForkBenchOptions, profile: MachineProfile) {
  onProgress?.("QEMU without a guest");
  const startMs: number[] = [];
  const bytes: number[] = [];
  for (let i = 0; i < Math.min(n, 16); i++) {
    const began = performance.now();
    const dir = host.owner.vmDir();
    const args = commandLine({ qemu: host.qemu, profile, ram: { kind: "anonymous" }, dir, paused: true });
    await using qemu = await QemuProcess.start({ host, dir, args, signal });
    startMs.push(performance.now() - began);
    bytes.push(privateBytesOf(qemu.pid));
  }
  return { bareQemuStartMs: distributionOf(startMs), barePrivateBytes: distributionOf(bytes) };
}

/** Boots and freezes VMs; the last frozen one is given back. */
async function benchBoots(
  { host, image, boots, onProgress, signal }: ForkBenchOptions,
  profile: MachineProfile,
) {
  const bootMs: number[] = [];
  const pauseMs: number[] = [];
  let frozen: FrozenVm | undefined;
  for (let i = 0; i < boots; i++) {
    onProgress?.(`booting and freezing VM ${i + 1} of ${boots}`);
    if (frozen) await rm(frozen.imagePath);
    await using vm: BootedVm = await bootVm({ host, profile, boot: image, ram: "shared", signal });
    await vm.agent.run(taskWarmUp().argv, { signal });
    frozen = await freeze(vm, image.hash, signal);
    bootMs.push(vm.bootMs);
    pauseMs.push(frozen.pauseMs);
  }
  if (!frozen) throw new RangeError(`Cannot measure with ${boots} boots`);
  return { frozen, coldBootMs: distributionOf(bootMs), pauseMs: distributionOf(pauseMs) };
}

async function keep(host: Host, frozen: FrozenVm, signal: AbortSignal | undefined) {
  const store = new ParentStore(host);
  const stored = await store.put(parentKey({ bench: process.pid }), frozen, signal);
  return { ...stored, [Symbol.asyncDispose]: () => store.remove(stored.hash) };
}

async function benchShells({ host, n, signal }: ForkBenchOptions, profile: MachineProfile, image: string) {
  const startMs: number[] = [];
  for (let i = 0; i < Math.min(n, 16); i++) {
    await using shell = await Shell.start({ host, profile, image }, signal);
    startMs.push(shell.startMs);
  }
  return distributionOf(startMs);
}

/** Forks children of one parent and counts those that fail. */
class ForkRuns {
  failures = 0;
  readonly #parent: Parent;
  readonly #signal: AbortSignal | undefined;

  constructor(parent: Parent, signal: AbortSignal | undefined) {
    this.#parent = parent;
    this.#signal = signal;
  }

  async oneByOne(count: number, warm: boolean) {
    if (warm) await this.#parent.shells.keep(count, this.#signal);
    await this.#parent.shells.keep(0, this.#signal);
    const running: number[] = [];
    const answer: number[] = [];
    const proofs: Child["proof"][] = [];
    for (let index = 0; index < count; index++) {
      const child = await this.#fork(index);
      if (!child) continue;
      await child[Symbol.asyncDispose]();
      const { shellMs, runningMs, answerMs } = child.times;
      running.push(shellMs + runningMs);
      answer.push(shellMs + answerMs);
      proofs.push(child.proof);
    }
    return { running, answer, proofs };
  }

  async together(count: number) {
    await this.#parent.shells.keep(count, this.#signal);
    await this.#parent.shells.keep(0, this.#signal);
    const began = performance.now();
    const started = await Promise.all(Array.from({ length: count }, (_, index) => this.#timed(index, began)));
    const children = started.filter((one) => one !== undefined);
    try {
      // Memory at rest is no event: the guests' own work after a fork takes this long to end.
      await new Promise((resolve) => setTimeout(resolve, SETTLE_MS));
      return {
        allRunningMs: Math.max(...children.map((one) => one.runningAt)),
        allAnsweredMs: Math.max(...children.map((one) => one.answeredAt)),
        privateBytesPerChild: distributionOf(children.map((one) => one.child.privateBytes())),
      };
    } finally {
      await Promise.all(children.map((one) => one.child[Symbol.asyncDispose]()));
    }
  }

  /** Forks and says when, in milliseconds since `began`, the child ran and had answered. */
  async #timed(index: number, began: number) {
    const called = performance.now() - began;
    const child = await this.#fork(index);
    if (!child) return undefined;
    const { shellMs, runningMs, answerMs } = child.times;
    return { child, runningAt: called + shellMs + runningMs, answeredAt: called + shellMs + answerMs };
  }

  async #fork(index: number): Promise<Child | undefined> {
    try {
      return await this.#parent.fork({
        identity: { index, hostname: `bench-${index}` },
        signal: this.#signal,
      });
    } catch (error) {
      if (this.#signal?.aborted) throw error;
      this.failures += 1;
      return undefined;
    }
  }
}
