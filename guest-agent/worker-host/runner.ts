import type { VmInfo } from "../protocol/worker/host-messages.ts";
import { Waits, type WorkerContext } from "./context.ts";
import { describeFailure, WorkerExit } from "./failures.ts";
import type { Operation } from "./operation.ts";
import type { Records } from "./records.ts";
import { currentRequestId } from "./scope.ts";
import type { WorkerHandlers } from "./shape.ts";

type Env = Readonly<Record<string, string>>;

const parentVm: VmInfo = { id: "", index: 0, generation: 0 };

/** The loaded worker with the identity that it has now. */
export class Runner {
  readonly handlers: WorkerHandlers;
  readonly #records: Records;
  #env: Env = Object.freeze({});
  #vm: VmInfo = parentVm;

  constructor(handlers: WorkerHandlers, records: Records) {
    this.handlers = handlers;
    this.#records = records;
  }

  /** Variables and secrets; empty in a parent. */
  get env(): Env {
    return this.#env;
  }

  /** Makes this VM the one that it is. `process.env` loses what an earlier fork brought. */
  become(vm: VmInfo, env: Env): void {
    for (const name of Object.keys(this.#env)) delete process.env[name];
    Object.assign(process.env, env);
    this.#env = Object.freeze({ ...env });
    this.#vm = Object.freeze({ ...vm });
  }

  /** What a handler gets. */
  begin(operation: Operation, requestId: string): { context: WorkerContext; waits: Waits } {
    return this.context(operation.signal, requestId);
  }

  context(signal: AbortSignal, requestId: string): { context: WorkerContext; waits: Waits } {
    const waits = new Waits((error) => this.logFailure(error));
    const context: WorkerContext = {
      waitUntil: (promise) => waits.add(promise),
      passThroughOnException: () => undefined,
      env: this.#env,
      vm: this.#vm,
      signal,
      requestId,
    };
    return { context, waits };
  }

  /** Puts a handler's error into the log. */
  logFailure(error: unknown): void {
    if (error instanceof WorkerExit) return; // that was reported when it was thrown
    const { message, stack } = describeFailure(error);
    this.#records.log({
      stream: "stderr",
      level: "error",
      text: stack ?? message,
      requestId: currentRequestId(),
    });
  }
}
