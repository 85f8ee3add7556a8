import { hostname } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { getLogger } from "@logtape/logtape";
import { codeOf, describeError, FlurryError } from "../../errors/errors.ts";
import { resolveImage } from "../../guest-agent/image/mod.ts";
import type { GuestFile, WorkerSpec } from "../api/mod.ts";
import { type Clock, systemClock } from "../clock.ts";
import { Admission, availableMemory, type FamilyAdmission, hostLimits } from "../fork/admission.ts";
import type { Child } from "../fork/child.ts";
import { Memserver } from "../fork/memserver.ts";
import { openParent, type ParentFile } from "../fork/open-parent.ts";
import type { Parent } from "../fork/parent.ts";
import { markUsed } from "../fork/parent-store.ts";
import { memserverKeys } from "../home.ts";
import type { Readiness } from "../jobs/ports.ts";
import { runTask, taskWarmUp } from "../jobs/task.ts";
import type { Attempt, AttemptExit, AttemptIo, TaskRuntime } from "../jobs/task-runtime.ts";
import { knownAccelerator } from "../vm/accelerator.ts";
import { Host } from "../vm/host.ts";
import type { Accelerator } from "../vm/profile.ts";
import { throwIfAborted } from "../vm/qemu-process.ts";
import { findImage } from "./images.ts";
import { LivenessProbe } from "./liveness-probe.ts";
import { LruMap } from "./lru-map.ts";
import { type Hold, OpenParents } from "./open-parents.ts";
import { SingleFlight } from "./single-flight.ts";
import { stepText } from "./steps.ts";

const logger = getLogger(["flurry", "workers"]);

/** Parents that are made at the same time: each boots a VM. */
const PREPARATIONS = 2;
/** Families that are remembered beside the open ones: what their children need, and why they failed. */
const REMEMBERED = 1000;
/** Failed forks in a row after which a parent is taken for broken, although its files are not. */
const FORK_FAILURES = 3;
/** Milliseconds until a memserver is told again that it is to serve other hosts. */
const LISTEN_WAIT_MS = 1000;
/** Parents of other hosts in a row whose memory did not come, after which a family has one made here. */
const LOST_PARENTS = 2;

export interface VmTaskRuntimeOptions {
  /** Data directory. @default flurryHome() */
  home?: string | undefined;
  /** Attempts at the same time. @default what the host can take */
  slots?: number | undefined;
  /** Parents kept open; more only while they have running children. @default 8 */
  parents?: number | undefined;
  /** Addresses (`HOST:PORT`) of other hosts' memservers: a parent that one of them has is not booted here. */
  peers?: readonly string[] | undefined;
  /** Milliseconds that a guest may leave a question unanswered before it counts as dead. @default 60000 */
  silenceMs?: number | undefined;
  /** Longest warm-up in milliseconds. @default 600000 */
  warmUpTimeoutMs?: number | undefined;
  clock?: Clock | undefined;
  signal?: AbortSignal | undefined;
}

/** Runs tasks in forked VMs. Parents are made when they are first asked for, and kept. */
export class VmTaskRuntime implements TaskRuntime {
  readonly name = hostname();
  readonly cores: number;
  readonly memoryBytes: number;
  readonly host: Host;
  readonly #options: VmTaskRuntimeOptions;
  readonly #clock: Clock;
  readonly #admission: Admission;
  readonly #memserver: Memserver;
  readonly #preparations = new SingleFlight();
  /** Places for parents that boot. */
  readonly #boots: Admission;
  readonly #parents: OpenParents<Parent>;
  readonly #families = new LruMap<FamilyAdmission>(REMEMBERED);
  readonly #steps = new Map<string, { text: string }>();
  readonly #failures = new LruMap<Readiness["error"]>(REMEMBERED);
  readonly #forkFailures = new WeakMap<Parent, number>();
  /** Parents of a family in a row that were given up because their memory did not come. */
  readonly #lost = new LruMap<number>(REMEMBERED);
  readonly #givenUp = new WeakSet<Parent>();
  /** Families whose next parent must not be the one on disk. */
  readonly #broken = new Set<string>();
  readonly #children = new Set<Child>();
  readonly #running = new Set<Promise<unknown>>();
  readonly #stop = new AbortController();
  #accel: Accelerator | undefined;

  private constructor(host: Host, accel: Accelerator | undefined, options: VmTaskRuntimeOptions) {
    this.host = host;
    this.#memserver = new Memserver({ host, keys: memserverKeys(host.home) });
    this.#options = options;
    this.#clock = options.clock ?? systemClock;
    this.#accel = accel;
    this.cores = host.cores;
    const limits = hostLimits(accel ?? "tcg", host.cores);
    const slots = options.slots ?? limits.slots;
    this.memoryBytes = limits.memoryBytes;
    const memoryNow = () => ({ availableBytes: availableMemory(), heldBytes: this.#heldBytes() });
    this.#admission = new Admission({ ...limits, slots }, memoryNow);
    this.#boots = new Admission({ ...limits, slots: PREPARATIONS });
    this.#parents = new OpenParents({ budget: options.parents ?? 8, shells: slots });
  }

  /** @throws FlurryError QEMU_NOT_FOUND, BAD_ARGUMENT */
  static async open(options: VmTaskRuntimeOptions = {}): Promise<VmTaskRuntime> {
    const { home, signal } = options;
    const host = await Host.open({ ...(home && { home }), ...(signal && { signal }) });
    try {
      return new VmTaskRuntime(host, await knownAccelerator(host), options);
    } catch (error) {
      await host[Symbol.asyncDispose]();
      throw error;
    }
  }

  get accel(): Accelerator | undefined {
    return this.#accel;
  }

  get slots(): number {
    return this.#admission.slots;
  }

  async prepare(family: string, spec: WorkerSpec, signal: AbortSignal): Promise<void> {
    throwIfAborted(signal);
    if (await this.#isUpToDate(family, spec)) return;
    await this.#preparations.join(family, (stop) => this.#prepare(family, spec, stop), signal);
  }

  readiness(family: string): Readiness {
    const step = this.#steps.get(family);
    if (step) return { state: "preparing", step: step.text };
    if (this.#parents.imageOf(family) !== undefined) return { state: "ready" };
    const error = this.#failures.get(family);
    return error ? { state: "failed", error } : { state: "cold" };
  }

  async admit(family: string, signal: AbortSignal): Promise<Disposable> {
    const places = this.#families.get(family);
    if (!places) throw new FlurryError("FORK_FAILED", `No parent of family "${family}" has been made`);
    return await places.acquire({ signal });
  }

  async run(attempt: Attempt, io: AttemptIo, signal: AbortSignal): Promise<AttemptExit> {
    const running = this.#run(attempt, io, AbortSignal.any([signal, this.#stop.signal]));
    this.#running.add(running);
    try {
      return await running;
    } finally {
      this.#running.delete(running);
    }
  }

  /**
   * Gives the frozen parents of this host to other hosts. Returns the port that is listened on.
   *
   * @param port - 0 for any that is free
   * @throws FlurryError MEMSERVER_FAILED
   */
  async servePages(hostname: string, port: number): Promise<number> {
    const dir = join(this.host.home, "parents");
    const bound = await this.#memserver.listen(hostname, port, dir);
    let ended = false;
    const goOn = async () => {
      for (let waitMs = 0; ended && !this.#stop.signal.aborted; waitMs = LISTEN_WAIT_MS) {
        await delay(waitMs, undefined, { signal: this.#stop.signal }).catch(() => undefined);
        ended = false;
        await this.#memserver.listen(hostname, bound, dir).catch((error) => {
          ended = true;
          if (this.#stop.signal.aborted) return;
          logger.warn("Other hosts cannot be given frozen parents: {error}", { error });
        });
      }
    };
    // Others may be in the midst of what they have from here, and know where it is.
    let going = Promise.resolve();
    const onDeath = () => {
      ended = true;
      const next = going.then(goOn);
      going = next;
      this.#running.add(next);
      void next.finally(() => this.#running.delete(next));
    };
    this.#memserver.watch("pages for other hosts", () => undefined, onDeath);
    return bound;
  }

  /** Ends what runs, and every VM and file of this runtime. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort();
    await Promise.allSettled(this.#running);
    await this.#preparations[Symbol.asyncDispose]();
    await this.#parents[Symbol.asyncDispose]();
    await this.#memserver[Symbol.asyncDispose]();
    await this.host[Symbol.asyncDispose]();
  }

  async #run(attempt: Attempt, io: AttemptIo, signal: AbortSignal): Promise<AttemptExit> {
    using hold = await this.#hold(attempt, signal);
    try {
      const exit = await this.#runIn(hold.parent, attempt, io, signal);
      this.#lost.delete(attempt.family);
      return exit;
    } catch (error) {
      if (lacksMemory(error)) this.#parentLost(attempt.family, hold.parent);
      throw error;
    }
  }

  async #runIn(parent: Parent, attempt: Attempt, io: AttemptIo, signal: AbortSignal): Promise<AttemptExit> {
    const beganAt = this.#clock.now();
    await using child = await this.#fork(parent, attempt, signal);
    using _measured = this.#measured(attempt.family, child);
    const { id, times } = child;
    const shellAt = beganAt + times.shellMs;
    await io.started({
      vm: id,
      beganAt,
      runningAt: shellAt + times.runningMs,
      identifiedAt: shellAt + times.answerMs,
    });
    const { silenceMs = 60_000 } = this.#options;
    using probe = new LivenessProbe(child.agent, silenceMs);
    const { spec, env, index, stdin, timeoutMs } = attempt;
    const task = {
      index,
      argv: spec.command,
      env: { ...env, FLURRY_VM_ID: id },
      cwd: spec.cwd,
      stdin,
      timeoutMs,
      outputs: { file: io.artifact.bind(io) },
    };
    try {
      const limit = AbortSignal.any([signal, probe.lost]);
      const { code, signal: endedBy } = await runTask(child, task, io.output.bind(io), limit);
      return { exitCode: code, signal: endedBy };
    } catch (error) {
      if (signal.aborted || !probe.lost.aborted) throw error;
      throw new FlurryError("CHILD_DIED", `${id} was killed: it has not answered for ${silenceMs} ms`, {
        cause: error,
      });
    }
  }

  /** The parent of an attempt, made anew if it was given up since the attempt was admitted. */
  async #hold({ family, spec }: Attempt, signal: AbortSignal): Promise<Hold<Parent>> {
    for (;;) {
      throwIfAborted(signal);
      const hold = this.#parents.hold(family);
      if (hold) return hold;
      await this.prepare(family, spec, signal);
    }
  }

  async #fork(parent: Parent, attempt: Attempt, signal: AbortSignal): Promise<Child> {
    const { family, index } = attempt;
    try {
      const identity = { index, hostname: hostNameOf(attempt) };
      const child = await parent.fork({ identity, signal });
      this.#forkFailures.delete(parent);
      markUsed(parent);
      return child;
    } catch (error) {
      throwIfAborted(signal);
      this.#forkFailed(family, parent);
      // Its parent was given up while it waited for a shell; nobody has asked it to end.
      if (codeOf(error) !== "ABORTED") throw error;
      throw new FlurryError("FORK_FAILED", `The parent of task ${index} was given up`, { cause: error });
    }
  }

  #forkFailed(family: string, parent: Parent): void {
    const failures = (this.#forkFailures.get(parent) ?? 0) + 1;
    this.#forkFailures.set(parent, failures);
    if (parent.intact && failures < FORK_FAILURES) return;
    if (parent.intact) this.#broken.add(family);
    this.#parents.drop(family, parent);
  }

  /** Has no further child wait for memory that does not come: other hosts are asked anew, or a parent is made. */
  #parentLost(family: string, parent: Parent): void {
    this.#parents.drop(family, parent);
    // Its other children may tell the same.
    if (this.#givenUp.has(parent)) return;
    this.#givenUp.add(parent);
    this.#lost.set(family, (this.#lost.get(family) ?? 0) + 1);
  }

  /** Counts a child as running; learns from it what children of its family need when it ends. */
  #measured(family: string, child: Child): Disposable {
    this.#children.add(child);
    return {
      [Symbol.dispose]: () => {
        this.#children.delete(child);
        const bytes = child.heldBytes();
        if (bytes > 0) this.#families.get(family)?.learn(bytes);
      },
    };
  }

  #heldBytes(): number {
    return [...this.#children].reduce((sum, child) => sum + child.heldBytes(), 0);
  }

  /** Whether there is a parent of the image that the family's name stands for now. */
  async #isUpToDate(family: string, spec: WorkerSpec): Promise<boolean> {
    const image = this.#parents.imageOf(family);
    if (image === undefined) return false;
    if ((await this.#currentImage(spec.image)) === image) return this.#parents.imageOf(family) !== undefined;
    this.#parents.drop(family);
    return false;
  }

  async #currentImage(name: string): Promise<string | undefined> {
    try {
      return (await resolveImage(this.host.home, name)).hash;
    } catch (error) {
      if (codeOf(error) === "IMAGE_NOT_FOUND") return undefined;
      throw error;
    }
  }

  async #prepare(family: string, spec: WorkerSpec, signal: AbortSignal): Promise<void> {
    const step = { text: "looking for the image" };
    this.#steps.set(family, step);
    try {
      await this.#makeParent(family, spec, step, signal);
      this.#failures.delete(family);
    } catch (error) {
      throwIfAborted(signal);
      const { code, message, hint } = describeError(error);
      this.#failures.set(family, { code, message, ...(hint !== undefined && { hint }) });
      throw error;
    } finally {
      // Another preparation may have begun since this one was given up.
      if (this.#steps.get(family) === step) this.#steps.delete(family);
    }
  }

  async #makeParent(
    family: string,
    spec: WorkerSpec,
    step: { text: string },
    signal: AbortSignal,
  ): Promise<void> {
    const { host } = this;
    const onStep = (text: string | undefined) => {
      step.text = text ?? step.text;
    };
    const image = await findImage(spec.image, { home: host.home, onStep, signal });
    const guestBytes = spec.memoryMiB * 1024 * 1024;
    onStep("waiting for other preparations");
    using _place = await this.#boots.family(guestBytes).acquire({ signal });
    const { parent, origin } = await openParent({
      host,
      image,
      memMiB: spec.memoryMiB,
      cpus: spec.cpus,
      files: spec.files.map(parentFile),
      warmUp: taskWarmUp(spec.warmUp),
      warmUpTimeoutMs: this.#options.warmUpTimeoutMs ?? 600_000,
      fresh: this.#broken.has(family),
      memory: spec.memory,
      memserver: this.#memserver,
      peers: (this.#lost.get(family) ?? 0) < LOST_PARENTS ? this.#options.peers : [],
      onProgress: (event) => {
        onStep(stepText(event));
        if (event.step === "peers-failed") logger.warn("Cannot use another host's parent: {reason}", event);
      },
      signal,
    });
    this.#broken.delete(family);
    this.#learnAccelerator(origin.accel.accel);
    const places = this.#families.get(family) ?? this.#admission.family(guestBytes, spec.cpus);
    this.#families.set(family, places);
    this.#parents.add(family, parent, image.hash);
  }

  /** What guests run under is known for certain when the first one has booted. */
  #learnAccelerator(accel: Accelerator): void {
    if (this.#accel === accel) return;
    this.#accel = accel;
    if (this.#options.slots !== undefined) return;
    const { slots } = hostLimits(accel, this.cores);
    this.#admission.slots = slots;
    this.#parents.shells = slots;
  }
}

/** Whether it is for want of its memory that a child did not start, or was killed. */
function lacksMemory(error: unknown): boolean {
  if (codeOf(error) === "PAGES_UNAVAILABLE") return true;
  return codeOf(error) === "CHILD_DIED" && error instanceof Error && lacksMemory(error.cause);
}

/** A host name may have 63 characters of a few kinds. */
function hostNameOf({ name, index }: Attempt): string {
  return `${name.replace(/[^A-Za-z0-9-]+/g, "-").slice(0, 48) || "task"}-${index}`;
}

function parentFile({ path, text, base64, mode }: GuestFile): ParentFile {
  return { path, mode, data: text === undefined ? Buffer.from(base64 ?? "", "base64") : Buffer.from(text) };
}
