import { readFileSync } from "node:fs";
import type { Socket } from "node:net";
import { codeOf, FlurryError } from "../../errors/errors.ts";
import {
  AgentClient,
  type GuestCall,
  type Inheritance,
  type InheritedProcess,
} from "../../guest-agent/protocol/mod.ts";
import type { Descriptor } from "../../memserver/descriptor.ts";
import type { QmpClient } from "../../qmp/mod.ts";
import { type Clock, systemClock } from "../clock.ts";
import { abortError, type QemuProcess } from "../vm/qemu-process.ts";
import type { TakenShell } from "../vm/shell-pool.ts";
import type { ChildMemory, GivenMemory } from "./child-memory.ts";
import type { Proof } from "./child-watch.ts";
import { checkReceipt, Draws, type Identity, nanoseconds, newIdentity, UnprovenError } from "./identity.ts";
import type { ImageBase } from "./image-base.ts";
import { lookAgain } from "./second-look.ts";

/** Milliseconds in which a child must prove who it is. Many children may share one emulated core. */
const IDENTIFY_DEADLINE_MS = 30_000;

/** Longest time that a guest gives its fork hooks, in milliseconds. */
const MOST_HOOK_MS = 60_000;

/** Milliseconds between a lost connection and the end of the process, if they belong together. */
const EXIT_GRACE_MS = 2000;

/** Of all children of this process: what one has drawn no other may draw. */
const draws = new Draws();

/** How long a VM took to start, in milliseconds, each counted from the moment its shell was there. */
export interface StartTimes {
  /** Whether the shell was waiting, and what it took to start one if not. */
  warm: boolean;
  shellMs: number;
  /** Until the child's CPUs ran. */
  runningMs: number;
  /** Until its first answer, which is the proof of its identity. */
  answerMs: number;
}

/** What a child was made of. */
export interface Origin {
  /** The image that it has mapped. */
  base: ImageBase;
  descriptor: Descriptor;
}

export interface StartChildOptions {
  taken: TakenShell;
  shellMs: number;
  memory: ChildMemory;
  id: string;
  identity: Identity;
  /** Processes of the parent that have a fork hook. @default 0 */
  hooks?: number | undefined;
  /** Those of them that have given evidence, in siblings: see `checkReceipt`. */
  evident?: Set<string> | undefined;
  /** Looks at what it has proven in a second way too. @default false */
  secondLook?: boolean | undefined;
  /** RAM of the guest in bytes. */
  memBytes: number;
  /** What its RAM and its state come from. */
  origin: Origin;
  /** Programs that run in it from the start. @default none */
  inheritances?: readonly Inheritance[] | undefined;
  /** Hears of programs in it that ask something of the host, from the start on. */
  onCall?: ((call: GuestCall) => void) | undefined;
  /** What time it is in the child. @default the system's */
  clock?: Clock | undefined;
  /** @default 30000 */
  timeoutMs?: number | undefined;
  signal?: AbortSignal | undefined;
}

/** A forked VM that has proven its identity. Killed and removed when disposed. */
export class Child implements AsyncDisposable {
  readonly id: string;
  readonly identity: Identity;
  readonly agent: AgentClient;
  readonly times: StartTimes;
  readonly proof: Omit<Proof, "parent">;
  readonly origin: Origin;
  /** Programs that ran in the VM that it was forked from, and go on here. */
  readonly inherited: readonly InheritedProcess[];
  /** Resolves when the child's VM is gone. */
  readonly exited: Promise<unknown>;
  readonly #options: StartChildOptions;
  readonly #memory: GivenMemory;
  readonly #imageHold: AsyncDisposable;
  /** Why it was killed, if its memory could not be had. */
  #memoryLoss: FlurryError | undefined;

  private constructor(
    options: StartChildOptions,
    agent: AgentClient,
    times: StartTimes,
    proof: Omit<Proof, "parent">,
    memory: GivenMemory,
    inherited: readonly InheritedProcess[],
  ) {
    this.id = options.id;
    this.proof = proof;
    this.origin = options.origin;
    this.inherited = inherited;
    this.#imageHold = options.origin.base.hold();
    this.identity = options.identity;
    this.agent = agent;
    this.times = times;
    this.#options = options;
    this.#memory = memory;
    void memory.lost.then((loss) => {
      this.#memoryLoss = loss;
      return options.taken.shell[Symbol.asyncDispose]();
    });
    this.exited = options.taken.shell.qemu.exited;
  }

  /**
   * Turns a shell into a child and has it prove its identity. The shell is taken over: it is gone
   * if this fails.
   *
   * @throws FlurryError FORK_FAILED, CHILD_UNPROVEN, MEMSERVER_FAILED, PAGES_UNAVAILABLE, ABORTED
   */
  static async start(options: StartChildOptions): Promise<Child> {
    const { taken, clock = systemClock, timeoutMs = IDENTIFY_DEADLINE_MS, signal } = options;
    const { shell, warm } = taken;
    const { qemu } = shell;
    const { hooks = 0, evident = new Set() } = options;
    const sentAt = clock.now();
    // In time for the host to hear which one it was.
    const hookTimeoutMs = Math.min(Math.ceil(timeoutMs / 2), MOST_HOOK_MS);
    const sent = { ...newIdentity(options.id, options.identity, clock), hookTimeoutMs };
    const began = performance.now();
    const running = qemu.qmp.expect("RESUME", { timeoutMs, signal });
    const agent = AgentClient.over(qemu.agentSocket, { stderr: () => qemu.consoleTail() });
    // Before anything is asked, whose id could be one of theirs.
    const inherited = (options.inheritances ?? []).map((inheritance) => agent.inherit(inheritance));
    let memory: GivenMemory | undefined;
    try {
      // Sent before the guest runs: it lies in the socket until the restored port takes it, so the
      // guest's first act is to read it.
      const proof = agent.identify(sent, { timeoutMs, signal });
      proof.catch(() => undefined);
      let runningMs = 0;
      const ran = running.then(() => {
        runningMs = performance.now() - began;
      });
      ran.catch(() => undefined);
      memory = await options.memory.give(shell, options.id, signal);
      const loss = memory.lost.then((reason) => {
        throw new FlurryError(reason.code, `Child ${options.id} did not start: ${reason.message}`, {
          cause: reason,
        });
      });
      // Together: whichever fails first ends it.
      const [read] = await Promise.race([Promise.all([proof, ran]), loss]);
      const elapsedMs = performance.now() - began;
      checkReceipt(read, { sent, elapsedMs, hooks, draws, evident });
      if (options.secondLook) await Promise.race([lookAgain(agent, sent, read, { timeoutMs, signal }), loss]);
      const answerMs = performance.now() - began;
      // Not before: until then no process of the guest runs but its agent.
      if (options.onCall) agent.onCall(options.onCall);
      agent.release({ realtimeNs: nanoseconds(clock.now()) });
      for (const each of inherited) each.begin();
      const times = { warm, shellMs: options.shellMs, runningMs, answerMs };
      return new Child(options, agent, times, { sent, read, hooks, sentAt, elapsedMs }, memory, inherited);
    } catch (error) {
      const info = isClosed(error) ? await within(qemu.exited, EXIT_GRACE_MS) : undefined;
      await agent[Symbol.asyncDispose]();
      await Promise.all([memory?.release(false), shell[Symbol.asyncDispose]()]);
      if (signal?.aborted) throw abortError(signal);
      if (info)
        throw new FlurryError(
          "FORK_FAILED",
          `Child ${options.id} did not start: ${qemu.exitError(info).message}`,
          { cause: error },
        );
      if (error instanceof FlurryError) throw error;
      throw UnprovenError.of(options.id, error);
    } finally {
      running[Symbol.dispose]();
    }
  }

  /** Process id of the child's QEMU. */
  get pid(): number {
    return this.#options.taken.shell.qemu.pid;
  }

  get qmp(): QmpClient {
    return this.#options.taken.shell.qemu.qmp;
  }

  /** Holds the sockets and files of its VM, and is removed with it. */
  get dir(): string {
    return this.#options.taken.shell.qemu.dir;
  }

  /** The host's end of the worker-host's port, if the machine has one; paused until somebody reads it. */
  get workerSocket(): Socket | undefined {
    return this.#options.taken.shell.qemu.workerSocket;
  }

  /** RAM of the guest in bytes. */
  get memBytes(): number {
    return this.#options.memBytes;
  }

  /** The last 64 KiB that this child's kernel wrote to its console. */
  consoleTail(): string {
    return this.#options.taken.shell.qemu.consoleTail();
  }

  /** The console's end when the VM is gone: what the guest said last is in it. */
  async lastWords(): Promise<string> {
    const { qemu } = this.#options.taken.shell;
    await qemu.exited;
    await within(qemu.silent, EXIT_GRACE_MS);
    return qemu.consoleTail();
  }

  /**
   * Host memory, in bytes, that exists for this child alone: changed guest pages and QEMU's own heap.
   * See `privateBytesOf`.
   */
  privateBytes(): number {
    return privateBytesOf(this.pid);
  }

  /** Much the same, without a walk through all of its memory; 0 when it is gone. See `heldBytesOf`. */
  heldBytes(): number {
    return heldBytesOf(this.pid);
  }

  /** Says why an operation of this child failed: its death, if it is dead, else the error itself. */
  async explain(error: unknown): Promise<unknown> {
    if (this.#memoryLoss && codeOf(error) === "AGENT_CLOSED") {
      const cause = this.#memoryLoss;
      return new FlurryError("CHILD_DIED", `${this.id} was killed: ${cause.message}`, { cause });
    }
    return await explainAgentError(error, this.id, this.#options.taken.shell.qemu);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.agent[Symbol.asyncDispose]();
    // First to the memserver, which would else take the end of the VM for one of its connection.
    await Promise.all([
      this.#memory.release(!this.#memoryLoss),
      this.#options.taken.shell[Symbol.asyncDispose](),
    ]);
    await this.#imageHold[Symbol.asyncDispose]();
  }
}

/** Puts the end of a VM in place of the error of its agent's channel, where that is the reason. */
export async function explainAgentError(error: unknown, id: string, qemu: QemuProcess): Promise<unknown> {
  if (codeOf(error) !== "AGENT_CLOSED") return error;
  // The channel and the process end together, but their events come in either order.
  const info = await within(qemu.exited, EXIT_GRACE_MS);
  const death = info && qemu.exitError(info);
  if (death?.code === "NO_SPACE") return death;
  const how = death?.message ?? "its agent closed the channel";
  return new FlurryError("CHILD_DIED", `${id} died: ${how}`, { cause: error });
}

/**
 * Memory of a process, in bytes, that is nobody else's and no file's (proc(5), smaps_rollup). Clean
 * pages of files do not count: they are private only as long as no sibling maps them too.
 */
export function privateBytesOf(pid: number): number {
  const rollup = readFileSync(`/proc/${pid}/smaps_rollup`, "utf8");
  const kilobytes = [...rollup.matchAll(/^(?:Private_Dirty|Swap): +(\d+) kB$/gm)].map((match) =>
    Number(match[1]),
  );
  return kilobytes.reduce((sum, kb) => sum + kb, 0) * 1024;
}

/** Memory of a process, in bytes, that no file stands for (proc(5), status); 0 when it is gone. */
export function heldBytesOf(pid: number): number {
  const status = readStatus(pid);
  const kilobytes = [...status.matchAll(/^(?:RssAnon|VmSwap):\s+(\d+) kB$/gm)].map((match) =>
    Number(match[1]),
  );
  return kilobytes.reduce((sum, kb) => sum + kb, 0) * 1024;
}

function readStatus(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/status`, "utf8");
  } catch (error) {
    if (codeOf(error) === "ENOENT" || codeOf(error) === "ESRCH") return "";
    throw error;
  }
}

function isClosed(error: unknown): boolean {
  return codeOf(error) === "AGENT_CLOSED" || codeOf(error) === "QMP_CLOSED";
}

async function within<T>(promise: Promise<T>, ms: number): Promise<T | undefined> {
  const { promise: late, resolve } = Promise.withResolvers<undefined>();
  const timer = setTimeout(resolve, ms, undefined);
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}
