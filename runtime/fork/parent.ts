import { randomBytes } from "node:crypto";
import { statSync } from "node:fs";
import { checkFingerprint, type Descriptor } from "../../memserver/descriptor.ts";
import { incomingStream } from "../../memserver/device-stream.ts";
import type { Host } from "../vm/host.ts";
import type { MachineProfile } from "../vm/profile.ts";
import { ShellPool } from "../vm/shell-pool.ts";
import { Child, type Identity } from "./child.ts";
import { type ChildMemory, MappedMemory } from "./child-memory.ts";
import { fingerprintOf } from "./fingerprint.ts";
import type { LazyMemory } from "./lazy-memory.ts";

export interface ParentOptions {
  host: Host;
  profile: MachineProfile;
  descriptor: Descriptor;
  /** File of the memory image. */
  imagePath: string;
  /** Gives children their memory page by page, instead of all of it by mapping the file. */
  lazy?: LazyMemory | undefined;
  /** Shells kept waiting. @default 0 */
  shells?: number | undefined;
}

export interface ForkOptions {
  identity: Identity;
  /** Milliseconds for the child to prove its identity. @default 30000 */
  timeoutMs?: number | undefined;
  signal?: AbortSignal | undefined;
}

/** A frozen parent that children are forked from. */
export class Parent implements AsyncDisposable {
  readonly descriptor: Descriptor;
  readonly profile: MachineProfile;
  readonly imagePath: string;
  readonly shells: ShellPool;
  readonly #memory: ChildMemory;
  readonly #stamp: string | undefined;

  /** @throws FlurryError FINGERPRINT_MISMATCH when the descriptor was made on another machine */
  constructor(options: ParentOptions) {
    const { host, profile, descriptor, imagePath } = options;
    checkFingerprint(descriptor, fingerprintOf(host, profile, descriptor.fingerprint.image));
    this.descriptor = descriptor;
    this.profile = profile;
    this.imagePath = imagePath;
    this.#memory =
      options.lazy ??
      new MappedMemory(incomingStream(descriptor.fingerprint.machine, descriptor.deviceState));
    this.#stamp = this.#filesNow();
    const image = options.lazy ? undefined : imagePath;
    this.shells = new ShellPool({ host, profile, image }, { keep: options.shells ?? 0 });
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
    return [memory.ino, memory.size, memory.ctimeNs, disk.ino, disk.size, disk.mtimeNs].join(" ");
  }

  /**
   * Forks one child.
   *
   * @throws FlurryError FORK_FAILED, CHILD_UNPROVEN, QEMU_START_FAILED, ABORTED. Nothing is left of
   * a child that failed.
   */
  async fork(options: ForkOptions): Promise<Child> {
    const began = performance.now();
    const taken = await this.shells.take(options.signal);
    return await Child.start({
      taken,
      shellMs: performance.now() - began,
      memory: this.#memory,
      id: `vm-${randomBytes(6).toString("hex")}`,
      identity: options.identity,
      memBytes: this.descriptor.ram.bytes,
      timeoutMs: options.timeoutMs,
      signal: options.signal,
    });
  }

  /** Ends the waiting shells. Children belong to whoever forked them. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.shells[Symbol.asyncDispose]();
  }
}
