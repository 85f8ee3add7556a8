import type { RamBlock } from "../stream/format.ts";

/** When and how fast a child gets what it has not asked for. */
export interface BackgroundOptions {
  /** Milliseconds after the start, in which a child gets its working set and what it asks for alone. */
  afterMs: number;
  /** Bytes a second; Infinity for as fast as the child takes them. */
  bytesPerSecond: number;
}

/** All that it takes to give a child its memory, but for the pages. */
export interface ChildSpec {
  /** Path of the unix socket on which its QEMU waits. */
  socket: string;
  /** Canonical machine type, e.g. `pc-q35-10.0`. */
  machine: string;
  /** The block that the image is of. All others are zeros. */
  block: RamBlock;
  /** FULL sections of the device state, without EOF. */
  devices: Uint8Array;
  /** Whether the capability `postcopy-preempt` is on: a second connection for what the guest waits for. */
  preempt: boolean;
  background: BackgroundOptions;
  /** Pages to send before any other, in this order. */
  workingSet?: Uint32Array | undefined;
  /** Keeps a record of what the child asks for. */
  record?: boolean | undefined;
  /** Asks after a page that the guest waited for when QEMU has put it in its place; takes time of its own. */
  measure?: boolean | undefined;
}

/** How it ended: `complete`: the child has all of its memory and needs nobody any more. */
export type ChildEnd =
  | { kind: "complete" }
  /** The connection broke; the child can be recovered if its guest ran. */
  | { kind: "lost"; reason: string }
  /** The child cannot be given its memory. */
  | { kind: "failed"; error: Error }
  /** It was given up from this side. */
  | { kind: "closed" };

export interface ChildStats {
  /** Pages that the guest waited for. */
  requests: number;
  /** Those of them that it waited for before its CPUs ran. */
  requestsBeforeRun: number;
  /** Pages sent unasked. */
  pushed: number;
  /** Bytes written to the child. */
  bytes: number;
  /** Microseconds in this process from a request's arrival to its answer's being written; the last ones. */
  serviceUs: number[];
  /** Microseconds from a request's arrival to QEMU's word that its page is in place; with `measure`. */
  placedUs: number[];
}
