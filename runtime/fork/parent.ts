import { randomBytes } from "node:crypto";
import { statSync } from "node:fs";
import type { GuestCall, Inheritance } from "../../guest-agent/protocol/mod.ts";
import { checkFingerprint, type Descriptor } from "../../memserver/descriptor.ts";
import { incomingStream } from "../../memserver/device-stream.ts";
import type { Clock } from "../clock.ts";
import type { Host } from "../vm/host.ts";
import type { MachineProfile } from "../vm/profile.ts";
import type { Shell } from "../vm/shell.ts";
import { ShellPool } from "../vm/shell-pool.ts";
import { Child, type Origin } from "./child.ts";
import { type ChildMemory, MappedMemory } from "./child-memory.ts";
import { tellProven, tellUnproven } from "./child-watch.ts";
import { fingerprintOf } from "./fingerprint.ts";
import { type Identity, UnprovenError } from "./identity.ts";
import { ImageBase } from "./image-base.ts";
import type { LazyMemory } from "./lazy-memory.ts";

export interface ParentOptions {
  host: Host;
  profile: MachineProfile;
  descriptor: Descriptor;
  /** File of the memory image. */
  imagePath: string;
  /** Gives children their memory page by page, instead of all of it by mapping the file. */
  lazy?: LazyMemory | undefined;
  /** The file is not complete yet; `arrived` says when it is. @default false */
  arriving?: boolean | undefined;
  /** What children come from, given up with the parent; each of them holds it for itself. */
  held?: AsyncDisposable | undefined;
  /** Shells kept waiting. @default 0 */
  shells?: number | undefined;
}

export interface ForkOptions {
  identity: Identity;
  /** Looks at what the child has proven in a second way too: see `lookAgain`. @default for the first child */
  secondLook?: boolean | undefined;
  /** Programs that run in the child from the start, if it is frozen with some. @default none */
  inheritances?: readonly Inheritance[] | undefined;
  /** Hears of programs in the child that ask something of the host, from the start on. @default they are refused */
  onCall?: ((call: GuestCall) => void) | undefined;
  /** What time it is in the child. @default the system's */
  clock?: Clock | undefined;
  /** Milliseconds for the child to prove its identity. @default 30000 */
  timeoutMs?: number | undefined;
  signal?: AbortSignal | undefined;
}

/** A frozen parent that children are forked from. */
export class Parent implements AsyncDisposable {
  readonly descriptor: Descriptor;
  readonly profile: MachineProfile;
  readonly shells: ShellPool;
  readonly host: Host;
  /** All of the memory image, for a shell that has it mapped. */
  readonly mapped: MappedMemory;
  readonly #lazy: LazyMemory | undefined;
  readonly #held: AsyncDisposable | undefined;
  #imagePath: string;
  #arriving: boolean;
  #hasArrived = false;
  #stamp: string | undefined;
  /** Whether a child has been looked at twice: all have the same agent. */
  #lookedAgain = false;
  readonly #evident = new Set<string>();
  readonly #base = new ImageBase(this, false);

  /** @throws FlurryError FINGERPRINT_MISMATCH when the descriptor was made on another machine */
  constructor(options: ParentOptions) {
    const { host, profile, descriptor, imagePath } = options;
    checkFingerprint(descriptor, fingerprintOf(host, profile, descriptor.fingerprint.image));
    this.descriptor = descriptor;
    this.profile = profile;
    this.host = host;
    this.#imagePath = imagePath;
    this.#arriving = options.arriving ?? false;
    this.#lazy = options.lazy;
    this.mapped = new MappedMemory(incomingStream(descriptor.fingerprint.machine, descriptor.deviceState));
    this.#held = options.held;
    this.#stamp = this.#filesNow();
    const image = options.lazy ? undefined : imagePath;
    const preempt = options.lazy?.preempt;
    this.shells = new ShellPool({ host, profile, image, preempt }, { keep: options.shells ?? 0 });
  }

  /** What its children come from. */
  get origin(): Origin {
    return { base: this.#base, descriptor: this.descriptor };
  }

  /** File of the memory image. */
  get imagePath(): string {
    return this.#imagePath;
  }

  /** Whether children of now on have their memory page by page. */
  get isLazy(): boolean {
    return this.#lazy !== undefined && !this.#hasArrived;
  }

  /** Says that the whole memory image is here now: children map it from now on, unless they are to stay lazy. */
  arrived(imagePath: string, stayLazy = false): void {
    this.#imagePath = imagePath;
    this.#arriving = false;
    this.#stamp = this.#filesNow();
    if (stayLazy) return;
    this.#hasArrived = true;
    this.shells.rebind({ host: this.host, profile: this.profile, image: imagePath });
  }

  /** Whether the files that children come from are still there, and as they were when it was opened. */
  get intact(): boolean {
    return this.#stamp !== undefined && this.#filesNow() === this.#stamp;
  }

  #filesNow(): string | undefined {
    const memory = statSync(this.imagePath, { bigint: true, throwIfNoEntry: false });
    const disk = statSync(this.profile.disk, { bigint: true, throwIfNoEntry: false });
    // Nothing but the kernel sets the change time. A disk's changes also when images come to share it.
    if (!memory || !disk) return undefined;
    const changed = this.#arriving ? 0n : memory.ctimeNs;
    return [memory.ino, memory.size, changed, disk.ino, disk.size, disk.mtimeNs].join(" ");
  }

  /**
   * Forks one child.
   *
   * @throws FlurryError FORK_FAILED, CHILD_UNPROVEN, QEMU_START_FAILED, ABORTED. Nothing is left of
   * a child that failed.
   */
  async fork(options: ForkOptions): Promise<Child> {
    const began = performance.now();
    const { fingerprint, ram, frozenAt, hooks } = this.descriptor;
    const taken = await this.shells.take(options.signal);
    try {
      const child = await Child.start({
        secondLook: !this.#lookedAgain,
        ...options,
        ...{ taken, hooks, evident: this.#evident },
        shellMs: performance.now() - began,
        // By its shell: one that has just been taken may be of the time before the image had arrived.
        memory: this.#memoryOf(taken.shell),
        id: `vm-${randomBytes(6).toString("hex")}`,
        memBytes: ram.bytes,
        origin: this.origin,
      });
      this.#lookedAgain = true;
      const parent = { image: fingerprint.image, memory: ram.hash, frozenAt };
      tellProven(this.host, { ...child.proof, parent }, child);
      return child;
    } catch (error) {
      if (error instanceof UnprovenError) tellUnproven(this.host, error);
      throw error;
    }
  }

  #memoryOf(shell: Shell): ChildMemory {
    return shell.isLazy && this.#lazy ? this.#lazy : this.mapped;
  }

  /** Ends the waiting shells. Children belong to whoever forked them. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.shells[Symbol.asyncDispose]();
    await this.#held?.[Symbol.asyncDispose]();
  }
}
