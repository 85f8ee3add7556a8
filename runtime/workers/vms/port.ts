import type { AgentFile, AgentProcess, ExecOptions } from "../../../guest-agent/protocol/mod.ts";
import type { WorkerSpec } from "../../api/mod.ts";

/** One VM that runs: made by hand or for a task, or forked from such a one. */
export interface VmInfo {
  id: string;
  /** Id of the key that it belongs to; "" where no keys are needed. */
  owner: string;
  /** Image that its family was made of. */
  image: string;
  /** The VM that it was forked from; null for one that was not. It may be gone by now. */
  parent: string | null;
  /** Its id in its ticket, from 1 on; 0 for one that was not forked by another VM. */
  index: number;
  /** 0 for one that was not forked by another VM, else one more than its parent's. */
  generation: number;
  /** The checkpoint that it was made of, if any. */
  checkpoint: string | null;
  /** The task that it, or the VM that its tree began with, was made for. */
  task: { job: string; index: number } | null;
  /** ms since 1970 */
  createdAt: number;
  /** Bytes: of the guest, and of the host's that are this VM's alone. */
  memBytes: number;
  heldBytes: number;
}

/** A VM's state with a name, from which others can be made; survives the gateway. */
export interface CheckpointInfo {
  name: string;
  owner: string;
  image: string;
  /** The VM that it is of, which may be gone, and that one's generation. */
  vm: string;
  generation: number;
  /** ms since 1970 */
  createdAt: number;
  memBytes: number;
  /** Bytes on disk. */
  storedBytes: number;
}

/** Who asks, and how many VMs may be theirs at a time. */
export interface VmOwner {
  id: string;
  /** @default no limit */
  vms?: number | undefined;
}

export type VmSource = { family: string; spec: WorkerSpec } | { checkpoint: string };

/** How one child of a fork came out. */
export type ForkOutcome = { status: "fulfilled"; vm: VmInfo } | { status: "rejected"; error: unknown };

/**
 * VMs that are made, forked and ended by hand. All that names a VM or a checkpoint throws VM_NOT_FOUND or
 * CHECKPOINT_NOT_FOUND, also for another owner's. `owner` undefined sees all.
 */
export interface Vms {
  list(owner: string | undefined): VmInfo[];
  get(id: string, owner: string | undefined): VmInfo;
  /** @throws FlurryError LIMIT_REACHED, ADMISSION_REFUSED, as `openParent` */
  create(source: VmSource, owner: VmOwner, signal: AbortSignal): Promise<VmInfo>;
  /** Forks a VM, which goes on. @throws FlurryError LIMIT_REACHED when not even one may be made, FORK_FAILED */
  fork(id: string, count: number, owner: VmOwner, signal: AbortSignal): Promise<ForkOutcome[]>;
  /** Starts a program; killed with the signal. @throws FlurryError, AgentError AGENT_REFUSED */
  exec(
    id: string,
    argv: readonly string[],
    options: ExecOptions,
    owner: string | undefined,
  ): Promise<AgentProcess>;
  openFile(id: string, path: string, owner: string | undefined, signal: AbortSignal): Promise<AgentFile>;
  putFile(
    id: string,
    file: { path: string; mode?: number | undefined; body: ReadableStream<Uint8Array> },
    owner: string | undefined,
    signal: AbortSignal,
  ): Promise<{ size: number }>;
  /** Ends a VM, and all that were forked from it; resolves when they are gone. Returns their ids. */
  kill(id: string, owner: string | undefined): Promise<string[]>;
  /** @throws FlurryError CHECKPOINT_EXISTS, NO_SPACE */
  checkpoint(id: string, name: string, owner: VmOwner, signal: AbortSignal): Promise<CheckpointInfo>;
  checkpoints(owner: string | undefined): Promise<CheckpointInfo[]>;
  /** Removes a checkpoint. VMs that were made of it go on. */
  removeCheckpoint(name: string, owner: string | undefined): Promise<void>;
}
