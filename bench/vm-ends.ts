import { existsSync, type FSWatcher, watch } from "node:fs";
import { type ChildProcess, watchChildren } from "../runtime/fork/child-watch.ts";
import type { Host } from "../runtime/vm/host.ts";

/** Milliseconds until a VM that is still there is taken for one that stays: a bound, no expectation. */
const ENDS_MS = 60_000;

/** The end of a child's VM. */
export interface VmEnd {
  /** When its last trace was gone, by `performance.now()`. */
  at: number;
  /** What its QEMU's id, and its directory, had been. */
  pid: number;
  dir: string;
}

/** Knows when nothing is left of the VMs of a host's children: no process, no directory, no socket. */
export class VmEnds implements Disposable {
  /** By the child's id. */
  readonly #ends = new Map<string, Promise<VmEnd>>();
  /** Called when something in the directory of all VMs has come or gone. */
  readonly #looks = new Set<() => void>();
  readonly #watcher: FSWatcher;
  readonly #observing: Disposable;

  /** Knows the children that are forked from now on. */
  constructor(host: Host) {
    this.#watcher = watch(host.owner.run, () => {
      for (const look of this.#looks) look();
    });
    this.#observing = watchChildren(host, {
      proven: ({ sent }, process) => this.#ends.set(sent.vmId, this.#endOf(process)),
      unproven: () => undefined,
    });
  }

  /**
   * Resolves when the last trace of a child's VM is gone.
   *
   * @param vm - the child's id
   */
  async endOf(vm: string): Promise<VmEnd> {
    const end = this.#ends.get(vm);
    if (end === undefined) throw new Error(`Nobody knows of a child "${vm}"`);
    const limit = Promise.withResolvers<never>();
    const timer = setTimeout(
      () => limit.reject(new Error(`The VM of ${vm} is still there after ${ENDS_MS} ms`)),
      ENDS_MS,
    );
    try {
      return await Promise.race([end, limit.promise]);
    } finally {
      clearTimeout(timer);
    }
  }

  async #endOf({ exited, pid, dir }: ChildProcess): Promise<VmEnd> {
    await Promise.all([exited, this.#removed(dir)]);
    return { at: performance.now(), pid, dir };
  }

  async #removed(dir: string): Promise<void> {
    await new Promise<void>((resolve) => {
      const look = () => {
        if (existsSync(dir)) return;
        this.#looks.delete(look);
        resolve();
      };
      this.#looks.add(look);
      look();
    });
  }

  [Symbol.dispose](): void {
    this.#observing[Symbol.dispose]();
    this.#watcher.close();
  }
}
