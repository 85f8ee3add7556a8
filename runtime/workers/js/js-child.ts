import { randomBytes } from "node:crypto";
import { FlurryError } from "../../../errors/errors.ts";
import { WorkerClient, type WorkerFault, type WorkerLog } from "../../../guest-agent/protocol/worker/mod.ts";
import type { Child } from "../../fork/child.ts";
import type { Parent } from "../../fork/parent.ts";

/** Milliseconds for a worker to have taken its new identity, `onFork()` included. */
const FORKED_MS = 30_000;

/** What a worker writes, and its failures, as lines for people and for machines. */
export interface WorkerOutput {
  onLog?: ((vm: string, log: WorkerLog) => void) | undefined;
  onFault?: ((vm: string, fault: WorkerFault) => void) | undefined;
}

export interface JsForkOptions {
  /** Names the child in its family, from 1 on. */
  index: number;
  /** For the child's host name. */
  name: string;
  env: Record<string, string>;
  secrets: Record<string, string>;
  output: WorkerOutput;
  signal: AbortSignal;
}

/** A forked VM whose JS worker knows that it is a fork, and serves. */
export class JsChild implements AsyncDisposable {
  readonly worker: WorkerClient;
  readonly #child: Child;

  private constructor(child: Child, worker: WorkerClient) {
    this.#child = child;
    this.worker = worker;
  }

  /** @throws FlurryError as `Parent.fork`; WorkerError when `onFork()` fails or takes too long */
  static async fork(parent: Parent, options: JsForkOptions): Promise<JsChild> {
    const { index, name, env, secrets, output, signal } = options;
    await using stack = new AsyncDisposableStack();
    const child = stack.use(await parent.fork({ identity: { index, hostname: `${name}-${index}` }, signal }));
    if (!child.workerSocket) throw new FlurryError("INTERNAL", "A parent of JS workers has no port for them");
    const worker = WorkerClient.over(child.workerSocket, {
      name: child.id,
      stderr: () => child.consoleTail(),
      onLog: (log) => output.onLog?.(child.id, log),
      onFault: (fault) => output.onFault?.(child.id, fault),
    });
    stack.use(worker);
    const vm = { id: child.id, index, generation: 1 };
    await worker.forked({ vm, env, secrets, seed: randomBytes(32) }, { timeoutMs: FORKED_MS, signal });
    stack.move();
    return new JsChild(child, worker);
  }

  get id(): string {
    return this.#child.id;
  }

  get exited(): Promise<unknown> {
    return this.#child.exited;
  }

  heldBytes(): number {
    return this.#child.heldBytes();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.worker[Symbol.asyncDispose]();
    await this.#child[Symbol.asyncDispose]();
  }
}
