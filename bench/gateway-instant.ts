import type { Readiness } from "../runtime/jobs/ports.ts";
import type { Attempt, AttemptExit, AttemptIo, TaskRuntime } from "../runtime/jobs/task-runtime.ts";

/** Tasks that end as they begin, without VMs: what is left is the gateway's own work. */
export class InstantRuntime implements TaskRuntime {
  readonly name = "instant";
  readonly cores = 1;
  readonly memoryBytes = 0;
  readonly slots: number;
  #runs = 0;

  /** @param slots - 0 to run nothing */
  constructor(slots: number) {
    this.slots = slots;
  }

  prepare(): Promise<void> {
    return Promise.resolve();
  }

  readiness(): Readiness {
    return { state: "ready" };
  }

  onReadiness(): Disposable {
    return { [Symbol.dispose]: () => undefined };
  }

  async admit(): Promise<Disposable> {
    return { [Symbol.dispose]: () => undefined };
  }

  async run(_attempt: Attempt, io: AttemptIo): Promise<AttemptExit> {
    const now = Date.now();
    this.#runs += 1;
    await io.started({ vm: `vm-${this.#runs}`, beganAt: now, runningAt: now, identifiedAt: now });
    return { exitCode: 0 };
  }

  [Symbol.asyncDispose](): Promise<void> {
    return Promise.resolve();
  }
}
