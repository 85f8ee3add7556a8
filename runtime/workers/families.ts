import { getLogger } from "@logtape/logtape";
import { codeOf, describeError, FlurryError } from "../../errors/errors.ts";
import { type Image, resolveImage } from "../../guest-agent/image/mod.ts";
import { imageOf, isModule, type WorkerSpec } from "../api/mod.ts";
import {
  Admission,
  availableMemory,
  type FamilyAdmission,
  hostLimits,
  type Ticket,
} from "../fork/admission.ts";
import type { Memserver } from "../fork/memserver.ts";
import type { Parent } from "../fork/parent.ts";
import { markUsed } from "../fork/parent-store.ts";
import type { Readiness } from "../jobs/ports.ts";
import type { Host } from "../vm/host.ts";
import type { Accelerator } from "../vm/profile.ts";
import { throwIfAborted } from "../vm/qemu-process.ts";
import { type FamilyMaking, makeParent } from "./family-parent.ts";
import { LruMap } from "./lru-map.ts";
import { type Hold, OpenParents } from "./open-parents.ts";
import { SingleFlight } from "./single-flight.ts";

const logger = getLogger(["flurry", "workers"]);

/** Parents that are made at the same time: each boots a VM. */
const PREPARATIONS = 2;
/** Families that are remembered beside the open ones: what their children need, and why they failed. */
const REMEMBERED = 1000;
/** Failed forks in a row after which a parent is taken for broken, although its files are not. */
const FORK_FAILURES = 3;
/** Parents of other hosts in a row whose memory did not come, after which a family has one made here. */
const LOST_PARENTS = 2;

export interface FamiliesOptions {
  host: Host;
  memserver: Memserver;
  /** What is known of it yet. */
  accel: Accelerator | undefined;
  /** Children at the same time. @default what the host can take */
  slots?: number | undefined;
  /** Parents kept open; more only while they have running children. @default 8 */
  parents?: number | undefined;
  /** Addresses of other hosts' memservers. */
  peers?: readonly string[] | undefined;
  /** Longest warm-up in milliseconds. @default 600000 */
  warmUpTimeoutMs?: number | undefined;
}

/** A child, as far as its family learns from it. */
export interface MeasuredChild {
  /** Host memory in bytes that is its alone; 0 when it is gone. */
  heldBytes(): number;
}

/**
 * The families of a host: their parents, which are made when they are first asked for and kept, and the
 * places for their children.
 */
export class Families implements AsyncDisposable {
  readonly memoryBytes: number;
  readonly #options: FamiliesOptions;
  readonly #admission: Admission;
  readonly #preparations = new SingleFlight();
  /** Places for parents that boot. */
  readonly #boots: Admission;
  readonly #parents: OpenParents<Parent>;
  readonly #places = new LruMap<FamilyAdmission>(REMEMBERED);
  readonly #steps = new Map<string, { text: string }>();
  readonly #failures = new LruMap<Readiness["error"]>(REMEMBERED);
  readonly #forkFailures = new WeakMap<Parent, number>();
  /** Parents of a family in a row that were given up because their memory did not come. */
  readonly #lost = new LruMap<number>(REMEMBERED);
  readonly #givenUp = new WeakSet<Parent>();
  /** Families whose next parent must not be the one on disk. */
  readonly #broken = new Set<string>();
  readonly #children = new Set<MeasuredChild>();
  readonly #listeners = new Set<(family: string) => void>();
  #accel: Accelerator | undefined;

  constructor(options: FamiliesOptions) {
    this.#options = options;
    this.#accel = options.accel;
    const limits = hostLimits(options.accel ?? "tcg", options.host.cores);
    const slots = options.slots ?? limits.slots;
    this.memoryBytes = limits.memoryBytes;
    const memoryNow = () => ({ availableBytes: availableMemory(), heldBytes: this.#heldBytes() });
    this.#admission = new Admission({ ...limits, slots }, memoryNow);
    this.#boots = new Admission({ ...limits, slots: PREPARATIONS });
    const onChange = (family: string) => this.#tell(family);
    this.#parents = new OpenParents({ budget: options.parents ?? 8, shells: slots, onChange });
  }

  get accel(): Accelerator | undefined {
    return this.#accel;
  }

  get slots(): number {
    return this.#admission.slots;
  }

  /** CPU cores that VMs share. */
  get cores(): number {
    return this.#options.host.cores;
  }

  /** As `TaskRuntime.prepare`. */
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

  /** Calls back after each change of a family's readiness. */
  onReadiness(listener: (family: string) => void): Disposable {
    this.#listeners.add(listener);
    return { [Symbol.dispose]: () => void this.#listeners.delete(listener) };
  }

  /** Waits until the host has room for a child of a family whose parent has been made. */
  async admit(family: string, signal: AbortSignal): Promise<Ticket> {
    const places = this.#places.get(family);
    if (!places) throw new FlurryError("FORK_FAILED", `No parent of family "${family}" has been made`);
    return await places.acquire({ signal });
  }

  /** A place for a child of a family if there is one that nobody waits for. */
  admitAhead(family: string): Ticket | undefined {
    return this.#places.get(family)?.tryAcquire();
  }

  /** Has places for VMs of a family whose parent is not made here: checkpoints are kept. */
  know(family: string, { memMiB, cpus }: { memMiB: number; cpus: number }): void {
    if (!this.#places.get(family))
      this.#places.set(family, this.#admission.family(memMiB * 1024 * 1024, cpus));
  }

  /**
   * A place for a VM that is forked from one of the family, or made by hand, if there is memory for it. Such VMs share
   * the processor time that others leave: a parent that waits for its children must not keep them from running.
   */
  admitShared(family: string): Ticket | undefined {
    return this.#places.get(family)?.tryAcquireShared();
  }

  /** Whether somebody waits for room for a child. */
  get isRoomWanted(): boolean {
    return this.#admission.waiting > 0;
  }

  /** Calls back when somebody begins to wait for room, and again as long as one does and things change. */
  onWaiting(listener: () => void): Disposable {
    return this.#admission.onWaiting(listener);
  }

  /** A family's parent to fork from, made anew if it was given up since it was last asked for. */
  async hold(family: string, spec: WorkerSpec, signal: AbortSignal): Promise<Hold<Parent>> {
    for (;;) {
      throwIfAborted(signal);
      const hold = this.#parents.hold(family);
      if (hold) return hold;
      await this.prepare(family, spec, signal);
    }
  }

  /** Forks, and learns from failures whether a parent is broken. @throws whatever `fork` throws */
  async fork<C>(family: string, parent: Parent, signal: AbortSignal, fork: () => Promise<C>): Promise<C> {
    try {
      const child = await fork();
      this.#forkFailures.delete(parent);
      markUsed(parent);
      return child;
    } catch (error) {
      throwIfAborted(signal);
      this.#forkFailed(family, parent);
      // Its parent was given up while it waited for a shell; nobody has asked it to end.
      if (codeOf(error) !== "ABORTED") throw error;
      throw new FlurryError("FORK_FAILED", "The parent was given up", { cause: error });
    }
  }

  /** Counts a child as running; learns from it what children of its family need when it ends. */
  measured(family: string, child: MeasuredChild): Disposable {
    this.#children.add(child);
    return {
      [Symbol.dispose]: () => {
        this.#children.delete(child);
        const bytes = child.heldBytes();
        if (bytes > 0) this.#places.get(family)?.learn(bytes);
      },
    };
  }

  /** The memory of a family's children comes. */
  worked(family: string): void {
    this.#lost.delete(family);
  }

  /** Has no further child wait for memory that does not come: other hosts are asked anew, or a parent is made. */
  parentLost(family: string, parent: Parent): void {
    this.#parents.drop(family, parent);
    // Its other children may tell the same.
    if (this.#givenUp.has(parent)) return;
    this.#givenUp.add(parent);
    this.#lost.set(family, (this.#lost.get(family) ?? 0) + 1);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#preparations[Symbol.asyncDispose]();
    await this.#parents[Symbol.asyncDispose]();
  }

  #forkFailed(family: string, parent: Parent): void {
    const failures = (this.#forkFailures.get(parent) ?? 0) + 1;
    this.#forkFailures.set(parent, failures);
    if (parent.intact && failures < FORK_FAILURES) return;
    if (parent.intact) this.#broken.add(family);
    this.#parents.drop(family, parent);
  }

  #heldBytes(): number {
    return [...this.#children].reduce((sum, child) => sum + child.heldBytes(), 0);
  }

  /** Whether there is a parent of the image that the family's name stands for now. */
  async #isUpToDate(family: string, spec: WorkerSpec): Promise<boolean> {
    const image = this.#parents.imageOf(family);
    if (image === undefined) return false;
    // That of modules is made of what runs this, and cannot change meanwhile.
    const isCurrent = isModule(spec) || (await this.#currentImage(imageOf(spec))) === image;
    if (isCurrent) return this.#parents.imageOf(family) !== undefined;
    this.#parents.drop(family);
    return false;
  }

  async #currentImage(name: string): Promise<Image["hash"] | undefined> {
    try {
      return (await resolveImage(this.#options.host.home, name)).hash;
    } catch (error) {
      if (codeOf(error) === "IMAGE_NOT_FOUND") return undefined;
      throw error;
    }
  }

  async #prepare(family: string, spec: WorkerSpec, signal: AbortSignal): Promise<void> {
    const step = { text: "looking for the image" };
    this.#steps.set(family, step);
    this.#tell(family);
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
      this.#tell(family);
    }
  }

  #tell(family: string): void {
    for (const listener of this.#listeners) listener(family);
  }

  async #makeParent(
    family: string,
    spec: WorkerSpec,
    step: { text: string },
    signal: AbortSignal,
  ): Promise<void> {
    const { host, memserver, warmUpTimeoutMs = 600_000, peers } = this.#options;
    const guestBytes = spec.memoryMiB * 1024 * 1024;
    const making: FamilyMaking = {
      ...{ host, memserver, warmUpTimeoutMs, spec, signal },
      place: () => this.#boots.family(guestBytes).acquire({ signal }),
      fresh: this.#broken.has(family),
      peers: (this.#lost.get(family) ?? 0) < LOST_PARENTS ? peers : [],
      onStep: (text) => {
        step.text = text ?? step.text;
        this.#tell(family);
      },
      onPeersFailed: (event) => logger.warn("Cannot use another host's parent: {reason}", event),
    };
    const { parent, accel, image } = await makeParent(making);
    this.#broken.delete(family);
    this.#learnAccelerator(accel);
    const places = this.#places.get(family) ?? this.#admission.family(guestBytes, spec.cpus);
    this.#places.set(family, places);
    this.#parents.add(family, parent, image);
  }

  /** What guests run under is known for certain when the first one has booted. */
  #learnAccelerator(accel: Accelerator): void {
    if (this.#accel === accel) return;
    this.#accel = accel;
    if (this.#options.slots !== undefined) return;
    const { slots } = hostLimits(accel, this.#options.host.cores);
    this.#admission.slots = slots;
    this.#parents.shells = slots;
  }
}
