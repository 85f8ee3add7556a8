/** Fork calls for programs in a VM: docs/fork-calls.md. tests/unit/bindings-types.test.ts holds it against src/vm.ts. */
declare module "flurry:vm" {
  /** What was asked for was refused. `code` is of guest-agent/protocol/CALLS.md, NO_HOST outside of a VM, or ABORTED. */
  export class FlurryError extends Error {
    readonly code: string;
    constructor(code: string, message: string, options?: { cause?: unknown });
  }

  /** Places for `granted` children. */
  export interface Ticket {
    name: string;
    granted: number;
  }

  /** Which VM this is: `id` is 0 where `fork` was called, 1 to `granted` in the children. */
  export interface Forked {
    id: number;
    ticket: Ticket;
    granted: number;
  }

  /** How a child ended. `result` is what it has exited with, or why it has not, for people. */
  export interface Child {
    id: number;
    vm: string;
    state: "exited" | "killed" | "died" | "failed";
    status: number;
    result: Uint8Array;
    /** What it has left below /out, where it is in this VM. */
    files: { path: string; size: number }[];
  }

  /** Who this VM is. `parent` is null for one that was not forked by another. */
  export interface Vm {
    id: number;
    vm: string;
    generation: number;
    parent: string | null;
  }

  export interface CallOptions {
    /** Gives the call up. What it has begun on the host goes on. */
    signal?: AbortSignal | undefined;
  }

  /** Reserves places for up to `n` children; may grant fewer, and at least one. `timeoutMs`: until it expires unused. */
  export function requestTicket(n: number, options?: CallOptions & { timeoutMs?: number }): Promise<Ticket>;

  /** Forks this VM: 0 here, 1 to `ticket.granted` in the children. */
  export function clone(ticket: Ticket | string, options?: CallOptions): Promise<number>;

  /** `requestTicket` and `clone` in one. */
  export function fork(n: number, options?: CallOptions): Promise<Forked>;

  /** Keeps this VM's state: id 0 here, more in each child that is made of it later. */
  export function checkpointParent(options?: CallOptions): Promise<{ id: number; checkpoint: string }>;

  /** Has children wake at a checkpoint; how many. */
  export function createClones(
    checkpoint: string,
    ticket: Ticket | string,
    options?: CallOptions,
  ): Promise<number>;

  /** Ends this child. `result`: bytes, a text, or what JSON can hold; up to 1 MiB. */
  export function exit(status?: number, result?: unknown): Promise<never>;

  /** The next child that has ended, each of them once; undefined when all have been told of. */
  export function nextChild(
    ticket: Ticket | string,
    options?: CallOptions & { timeoutMs?: number },
  ): Promise<Child | undefined>;

  /** Children as they end. */
  export function ended(ticket: Ticket | string, options?: CallOptions): AsyncGenerator<Child, void>;

  /** All children that have not been told of, by id, when the last one has ended. */
  export function join(ticket: Ticket | string, options?: CallOptions): Promise<Child[]>;

  /** Ends all children that run; how many those were. `join` tells of them too. */
  export function kill(ticket: Ticket | string, options?: CallOptions): Promise<number>;

  export function identity(options?: CallOptions): Promise<Vm>;
}
