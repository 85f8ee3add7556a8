import { readFileSync } from "node:fs";
import { FlurryError } from "../../errors/errors.ts";
import type { Accelerator } from "../vm/profile.ts";
import { abortError, throwIfAborted } from "../vm/qemu-process.ts";

/** Share of the memory that is available which children may use together. */
const MEMORY_SHARE = 0.8;
/** First guess of a child's private memory: QEMU's own, and a part of the guest's. Measured ones replace it. */
const QEMU_BYTES = 48 * 1024 * 1024;
const GUEST_SHARE = 0.25;
/** Room for a child that needs more than those before it. */
const HEADROOM = 1.25;

export interface AdmissionLimits {
  /** Bytes that all children together may add to the host. */
  memoryBytes: number;
  /** CPUs of children that run at the same time. */
  slots: number;
}

/** How memory is at this moment. */
export interface MemoryNow {
  /** Bytes that can be used on the host without swapping. */
  availableBytes: number;
  /** Bytes that admitted children have taken already. */
  heldBytes: number;
}

/** A place for one child, given back when disposed. */
export interface Ticket extends Disposable {
  /** Bytes that were set aside. */
  bytes: number;
  /** The child has nothing to do: another one may have its processor time, while it keeps its memory. */
  rest(): void;
  /** It has again: at once, also where its processor time is another's by now. Those who wait, wait longer. */
  resume(): void;
}

export interface AcquireOptions {
  signal?: AbortSignal | undefined;
}

/** How many children can run here: as many as cores when emulated; KVM guests leave cores idle more often. */
export function hostLimits(accel: Accelerator, cores: number): AdmissionLimits {
  const memoryBytes = Math.floor(availableMemory() * MEMORY_SHARE);
  return { memoryBytes, slots: accel === "tcg" ? cores : cores * 4 };
}

/** MemAvailable of /proc/meminfo in bytes: what can be used without swapping. */
export function availableMemory(): number {
  const match = /^MemAvailable: +(\d+) kB$/m.exec(readFileSync("/proc/meminfo", "utf8"));
  return Number(match?.[1] ?? 0) * 1024;
}

/**
 * Admits children of all families by memory and CPU, in the order in which they asked: a large one
 * that waits is overtaken by nobody.
 */
export class Admission {
  readonly #memoryBytes: number;
  readonly #memoryNow: (() => MemoryNow) | undefined;
  readonly #queue: { request: FamilyAdmission; admit: () => void }[] = [];
  readonly #listeners = new Set<() => void>();
  #slots: number;
  #tickets = 0;
  #usedBytes = 0;
  #usedSlots = 0;

  /** @param memoryNow - looked at before each admission; without it, only the limits count */
  constructor(limits: AdmissionLimits, memoryNow?: () => MemoryNow) {
    this.#memoryBytes = limits.memoryBytes;
    this.#slots = limits.slots;
    this.#memoryNow = memoryNow;
  }

  get slots(): number {
    return this.#slots;
  }

  /** How many wait for a place. */
  get waiting(): number {
    return this.#queue.length;
  }

  /** Calls back when one begins to wait, and when others go on waiting although a place was given back. */
  onWaiting(listener: () => void): Disposable {
    this.#listeners.add(listener);
    return { [Symbol.dispose]: () => void this.#listeners.delete(listener) };
  }

  set slots(count: number) {
    this.#slots = count;
    this.#admitWaiting();
  }

  /**
   * The way in for the children of one parent, which learns what they need.
   *
   * @param guestBytes - RAM of one guest
   * @param cpus - slots that a child takes. @default 1
   */
  family(guestBytes: number, cpus = 1): FamilyAdmission {
    return new FamilyAdmission(this, guestBytes, cpus);
  }

  /**
   * Waits for a place; called through `family`.
   *
   * @throws FlurryError ADMISSION_REFUSED if even an empty host has no room for one child, ABORTED
   */
  async acquire(request: FamilyAdmission, { signal }: AcquireOptions = {}): Promise<Ticket> {
    throwIfAborted(signal);
    if (!this.#canEver(request)) throw this.#refusal(request);
    if (this.#queue.length === 0 && this.#hasRoom(request)) return this.#take(request);
    const { promise, resolve, reject } = Promise.withResolvers<Ticket>();
    const entry = { request, admit: () => resolve(this.#take(request)) };
    this.#queue.push(entry);
    this.#tellWaiting();
    const onAbort = () => {
      const at = this.#queue.indexOf(entry);
      if (at >= 0) this.#queue.splice(at, 1);
      reject(abortError(signal));
      this.#admitWaiting();
    };
    signal?.addEventListener("abort", onAbort, { once: true });
    try {
      return await promise;
    } finally {
      signal?.removeEventListener("abort", onAbort);
    }
  }

  /** Takes a place if there is one that nobody waits for; called through `family`. */
  tryAcquire(request: FamilyAdmission): Ticket | undefined {
    const isFree = this.#queue.length === 0 && this.#canEver(request) && this.#hasRoom(request);
    return isFree ? this.#take(request) : undefined;
  }

  /** Takes a place for a child that shares the processor time of others, if there is memory for it. */
  tryAcquireShared(request: FamilyAdmission): Ticket | undefined {
    if (!this.#canEver(request) || !this.#hasMemory(request)) return undefined;
    const ticket = this.#take(request);
    ticket.rest();
    return ticket;
  }

  /** Looks again whether those who wait can be let in: a family has changed its measure. */
  reconsider(): void {
    this.#admitWaiting();
  }

  #take(request: FamilyAdmission): Ticket {
    const bytes = request.bytesPerChild;
    const slots = this.#slotsOf(request);
    this.#tickets += 1;
    this.#usedBytes += bytes;
    this.#usedSlots += slots;
    let held = true;
    let resting = false;
    const rest = (on: boolean) => {
      if (!held || resting === on) return;
      resting = on;
      this.#usedSlots += on ? -slots : slots;
      if (on) this.#admitWaiting();
    };
    return {
      bytes,
      rest: () => rest(true),
      resume: () => rest(false),
      [Symbol.dispose]: () => {
        if (!held) return;
        held = false;
        this.#tickets -= 1;
        this.#usedBytes -= bytes;
        if (!resting) this.#usedSlots -= slots;
        this.#admitWaiting();
      },
    };
  }

  /** Whether an empty host has room for a child. */
  #canEver({ bytesPerChild }: FamilyAdmission): boolean {
    return bytesPerChild <= this.#memoryBytes && this.#slots >= 1;
  }

  #hasRoom(request: FamilyAdmission): boolean {
    // Alone on the host a child always has room: its measure may have outgrown the budget since.
    if (this.#tickets === 0) return true;
    if (this.#usedSlots + this.#slotsOf(request) > this.#slots) return false;
    return this.#hasMemory(request);
  }

  #hasMemory(request: FamilyAdmission): boolean {
    const bytes = this.#usedBytes + request.bytesPerChild;
    return bytes <= this.#memoryBytes && bytes <= this.#bytesNow();
  }

  /** What children may use together as things are now: what they have, and a share of what is left. */
  #bytesNow(): number {
    if (!this.#memoryNow) return Number.POSITIVE_INFINITY;
    const { availableBytes, heldBytes } = this.#memoryNow();
    return heldBytes + availableBytes * MEMORY_SHARE;
  }

  /** A guest with more CPUs than there are slots takes all of them. */
  #slotsOf({ cpus }: FamilyAdmission): number {
    return Math.min(cpus, Math.max(1, this.#slots));
  }

  #admitWaiting(): void {
    while (this.#queue.length > 0 && this.#hasRoom(this.#queue[0]!.request)) this.#queue.shift()!.admit();
    if (this.#queue.length > 0) this.#tellWaiting();
  }

  #tellWaiting(): void {
    // Not within whoever has just asked, or has given a place back: they are in the middle of something.
    queueMicrotask(() => {
      if (this.#queue.length > 0) for (const listener of this.#listeners) listener();
    });
  }

  #refusal({ bytesPerChild }: FamilyAdmission): FlurryError {
    const need = Math.ceil(bytesPerChild / 1024 / 1024);
    const have = Math.floor(this.#memoryBytes / 1024 / 1024);
    return new FlurryError(
      "ADMISSION_REFUSED",
      `A child needs ${need} MiB, and children may use ${have} MiB here`,
      {
        hint: "free memory, or give the guest less of it",
      },
    );
  }
}

/** Admission of the children of one parent: they need about as much as each other. */
export class FamilyAdmission {
  readonly cpus: number;
  readonly #admission: Admission;
  #bytesPerChild: number;

  constructor(admission: Admission, guestBytes: number, cpus: number) {
    this.#admission = admission;
    this.cpus = cpus;
    this.#bytesPerChild = QEMU_BYTES + guestBytes * GUEST_SHARE;
  }

  /** Bytes that the next child is expected to need. */
  get bytesPerChild(): number {
    return this.#bytesPerChild;
  }

  /** Takes what a child really used as the measure for the next ones. */
  learn(privateBytes: number): void {
    const measured = privateBytes * HEADROOM;
    // A larger one counts at once, smaller ones only gradually: too few children beat a host out of memory.
    this.#bytesPerChild = Math.max(measured, this.#bytesPerChild * 0.9 + measured * 0.1);
    this.#admission.reconsider();
  }

  /** Waits for a place. @throws as `Admission.acquire` */
  acquire(options?: AcquireOptions): Promise<Ticket> {
    return this.#admission.acquire(this, options);
  }

  /** As `Admission.tryAcquireShared`. */
  tryAcquireShared(): Ticket | undefined {
    return this.#admission.tryAcquireShared(this);
  }

  /** As `Admission.tryAcquire`. */
  tryAcquire(): Ticket | undefined {
    return this.#admission.tryAcquire(this);
  }
}
