import { getLogger } from "@logtape/logtape";
import type { GuestIdentity, IdentityReceipt } from "../../guest-agent/protocol/mod.ts";
import type { Host } from "../vm/host.ts";
import type { UnprovenError } from "./identity.ts";

const logger = getLogger(["flurry", "fork"]);

/** How a child has proven who it is. */
export interface Proof {
  sent: GuestIdentity;
  read: IdentityReceipt;
  /** Processes of the parent that had a fork hook at the freeze. */
  hooks: number;
  /** Milliseconds since 1970 when the identity was sent, and how long the proof took from then on. */
  sentAt: number;
  elapsedMs: number;
  /** What the parent was made of, and the hash of its memory image once that is known. */
  parent: { image: string; memory: string | undefined; frozenAt: number };
}

/** What a child's VM is on its host. */
export interface ChildProcess {
  /** Of its QEMU. */
  pid: number;
  /** Holds its sockets and files; removed after the process's end. */
  dir: string;
  /** Resolves at the process's end. */
  exited: Promise<unknown>;
}

/** Hears of the children of a host. It must neither throw nor take time: forks go on behind it. */
export interface ChildObserver {
  proven(proof: Proof, process: ChildProcess): void;
  unproven(error: UnprovenError): void;
}

const observers = new WeakMap<Host, Set<ChildObserver>>();

/** Hears of all children of a host from now on. */
export function watchChildren(host: Host, observer: ChildObserver): Disposable {
  const all = observers.get(host) ?? new Set();
  observers.set(host, all);
  all.add(observer);
  return { [Symbol.dispose]: () => void all.delete(observer) };
}

export function tellProven(host: Host, proof: Proof, process: ChildProcess): void {
  for (const observer of observers.get(host) ?? []) observer.proven(proof, process);
}

export function tellUnproven(host: Host, error: UnprovenError): void {
  logger.warn("{message}", { message: error.message, vm: error.id, field: error.field });
  for (const observer of observers.get(host) ?? []) observer.unproven(error);
}
