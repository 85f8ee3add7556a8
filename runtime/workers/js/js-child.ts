import { setTimeout as sleep } from "node:timers/promises";
import { codeOf, FlurryError } from "../../../errors/errors.ts";
import type { AgentClient } from "../../../guest-agent/protocol/mod.ts";
import {
  type OutboundHandler,
  WorkerClient,
  WorkerError,
  type WorkerFault,
  type WorkerLog,
} from "../../../guest-agent/protocol/worker/mod.ts";
import type { Child, StartTimes } from "../../fork/child.ts";
import type { ForkOptions, Parent } from "../../fork/parent.ts";
import { deathOf } from "./worker-death.ts";

/** Milliseconds for a worker to have taken its new identity, `onFork()` included. */
const FORKED_MS = 30_000;
/** Milliseconds between a lost channel and the end of the VM's process, if they belong together. */
const EXIT_GRACE_MS = 2000;

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
  /** Makes the worker's own requests to others; from `outboundOf`. @default none are made */
  outbound?: OutboundHandler | undefined;
  /** Hears of programs in the VM that ask something of the host. @default they are refused */
  onCall?: ForkOptions["onCall"];
  signal: AbortSignal;
}

/** A forked VM whose JS worker knows that it is a fork, and serves. */
export class JsChild implements AsyncDisposable {
  readonly worker: WorkerClient;
  readonly #child: Child;
  readonly #exited = Promise.withResolvers<FlurryError>();
  #death: FlurryError | undefined;

  private constructor(child: Child, { output, outbound }: Pick<JsForkOptions, "output" | "outbound">) {
    if (!child.workerSocket) throw new FlurryError("INTERNAL", "A parent of JS workers has no port for them");
    this.#child = child;
    this.worker = WorkerClient.over(child.workerSocket, {
      name: child.id,
      stderr: () => child.consoleTail(),
      outbound,
      onLog: (log) => output.onLog?.(child.id, log),
      onFault: (fault) => {
        output.onFault?.(child.id, fault);
        if (fault.kind === "exit") this.condemn(`the worker called process.exit(${fault.exitCode ?? 0})`);
      },
    });
    void child.lastWords().then((words) => this.condemn(deathOf(words) ?? "its VM has ended"));
    void this.worker.closed.then(async ({ code, message }) => {
      // A channel that closes is a VM that ends, and its console says why.
      if (code === "AGENT_CLOSED") await sleep(EXIT_GRACE_MS, undefined, { ref: false });
      this.condemn(message);
    });
  }

  /**
   * @throws FlurryError as `Parent.fork`; WorkerError when `onFork()` fails or takes too long; CHILD_DIED
   * when the worker ends meanwhile
   */
  static async fork(parent: Parent, options: JsForkOptions): Promise<JsChild> {
    const { index, name, env, secrets, onCall, signal } = options;
    const vm = await parent.fork({ identity: { index, hostname: `${name}-${index}` }, onCall, signal });
    await using stack = new AsyncDisposableStack();
    stack.use(vm);
    const child = new JsChild(vm, options);
    stack.use(child.worker);
    const fork = { vm: { id: vm.id, index, generation: 1 }, env, secrets };
    await child.worker.forked(fork, { timeoutMs: FORKED_MS, signal }).catch(async (error) => {
      throw await child.explain(error);
    });
    stack.move();
    return child;
  }

  get id(): string {
    return this.#child.id;
  }

  /** The VM that it runs in. */
  get vm(): Child {
    return this.#child;
  }

  /** How it has proven who it is. */
  get proof(): Child["proof"] {
    return this.#child.proof;
  }

  get agent(): AgentClient {
    return this.#child.agent;
  }

  /** Of its VM; the worker has its identity a while later. */
  get times(): StartTimes {
    return this.#child.times;
  }

  /**
   * Settles when its VM is gone, or its worker is not to be asked any more, with the reason for the
   * requests in it: CHILD_DIED.
   */
  get exited(): Promise<FlurryError> {
    return this.#exited.promise;
  }

  /** The same at once; undefined while it lives. */
  get death(): FlurryError | undefined {
    return this.#death;
  }

  heldBytes(): number {
    return this.#child.heldBytes();
  }

  /** Gives it up for a reason: requests in it fail with that. The VM ends when it is disposed. */
  condemn(reason: string): FlurryError {
    this.#death ??= new FlurryError("CHILD_DIED", `${this.id} died with the request in it: ${reason}`);
    this.#exited.resolve(this.#death);
    return this.#death;
  }

  /** Says why something of its worker failed: the worker's death, if it is dead, else the error itself. */
  async explain(error: unknown): Promise<unknown> {
    if (this.#death) return this.#death;
    if (error instanceof WorkerError && error.remote === "EXITED") {
      return this.condemn("the worker called process.exit");
    }
    return codeOf(error) === "AGENT_CLOSED" ? await this.exited : error;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.worker[Symbol.asyncDispose]();
    await this.#child[Symbol.asyncDispose]();
  }
}
