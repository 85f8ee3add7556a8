import { readFileSync } from "node:fs";
import { FlurryError } from "../../errors/errors.ts";
import type { Accelerator } from "../vm/profile.ts";
import { abortError, throwIfAborted } from "../vm/qemu-process.ts";

/** Share of the memory that is available at the start which children may use together. */
const MEMORY_SHARE = 0.8;
/** First guess of a child's private memory: QEMU's own, and a part of the guest's. Measured ones replace it. */
const QEMU_BYTES = 48 * 1024 * 1024;
const GUEST_SHARE = 0.25;
/** Room for a child that needs more than those before it. */
const HEADROOM = 1.25;

export interface AdmissionLimits {
  /** Bytes that all children together may add to the host. */
  memoryBytes: number;
  /** Children that run at the same time. */
  slots: number;
}

/** A place for one child, given back when disposed. */
export interface Ticket extends Disposable {
  /** Bytes that were set aside. */
  bytes: number;
}

/** How many children can run here: as many as cores when emulated; KVM guests leave cores idle more often. */
export function hostLimits(accel: Accelerator, cores: number): AdmissionLimits {
  return { memoryBytes: availableMemory() * MEMORY_SHARE, slots: accel === "tcg" ? cores : cores * 4 };
}

/** MemAvailable of /proc/meminfo in bytes: what can be used without swapping. */
export function availableMemory(): number {
  const match = /^MemAvailable: +(\d+) kB$/m.exec(readFileSync("/proc/meminfo", "utf8"));
  return Number(match?.[1] ?? 0) * 1024;
}

/** Admits children by memory and CPU, in the order in which they asked. */
export class Admission {
  readonly #limits: AdmissionLimits;
  readonly #queue: { admit: () => void }[] = [];
  #bytesPerChild: number;
  #usedBytes = 0;
  #usedSlots = 0;

  /** @param guestBytes - RAM of one guest */
  constructor(limits: AdmissionLimits, guestBytes: number) {
    this.#limits = limits;
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
    this.#admitWaiting();
  }

  /**
   * Waits for a place.
   *
   * @throws FlurryError ADMISSION_REFUSED if even an empty host has no room for one child, ABORTED
   */
  async acquire(options: { signal?: AbortSignal | undefined } = {}): Promise<Ticket> {
    const { signal } = options;
    throwIfAborted(signal);
    if (this.#bytesPerChild > this.#limits.memoryBytes || this.#limits.slots < 1) throw this.#refusal();
    if (this.#queue.length === 0 && this.#hasRoom()) return this.#take();
    const { promise, resolve, reject } = Promise.withResolvers<Ticket>();
    const entry = { admit: () => resolve(this.#take()) };
    this.#queue.push(entry);
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

  #take(): Ticket {
    const bytes = this.#bytesPerChild;
    this.#usedBytes += bytes;
    this.#usedSlots += 1;
    let held = true;
    return {
      bytes,
      [Symbol.dispose]: () => {
        if (!held) return;
        held = false;
        this.#usedBytes -= bytes;
        this.#usedSlots -= 1;
        this.#admitWaiting();
      },
    };
  }

  #hasRoom(): boolean {
    // Alone on the host a child always has room: its measure may have outgrown the budget since.
    if (this.#usedSlots === 0) return true;
    const { memoryBytes, slots } = this.#limits;
    return this.#usedSlots < slots && this.#usedBytes + this.#bytesPerChild <= memoryBytes;
  }

  #admitWaiting(): void {
    while (this.#queue.length > 0 && this.#hasRoom()) this.#queue.shift()!.admit();
  }

  #refusal(): FlurryError {
    const need = Math.ceil(this.#bytesPerChild / 1024 / 1024);
    const have = Math.floor(this.#limits.memoryBytes / 1024 / 1024);
    return new FlurryError(
      "ADMISSION_REFUSED",
      `A child needs ${need} MiB, and children may use ${have} MiB here`,
      {
        hint: "free memory, or give the guest less with --memory",
      },
    );
  }
}
