import { FlurryError } from "../../errors/errors.ts";
import type { SetAside, WorkerSpec } from "../api/mod.ts";
import type { Clock } from "../clock.ts";
import type { DispatchObserver } from "./observer.ts";
import type { Readiness, Store } from "./ports.ts";
import type { TaskRuntime } from "./task-runtime.ts";
import { type After, systemAfter } from "./timer.ts";

export interface DispatcherOptions {
  store: Store;
  runtime: TaskRuntime;
  clock: Clock;
  observer?: DispatchObserver | undefined;
  /** @default the runtime's name */
  hostId?: string | undefined;
  /** How long a lease on a task lasts; it is renewed at a third of that. @default 30000 */
  leaseMs?: number | undefined;
  /** How long running tasks may go on when the dispatcher ends. @default 0 */
  drainMs?: number | undefined;
  /** From 0 to below 1. @default Math.random */
  random?: (() => number) | undefined;
  /** @default setTimeout */
  after?: After | undefined;
}

/** Takes tasks from the queue, runs them on this host, and records how they end. */
export class Dispatcher implements AsyncDisposable {
  readonly #options: DispatcherOptions;
  readonly #after: After;

  constructor(options: DispatcherOptions) {
    this.#options = options;
    this.#after = options.after ?? systemAfter;
  }

  /** Registers the host and begins to take tasks. */
  async start(): Promise<void> {
    throw new FlurryError("INTERNAL", `Not there yet ${this.#after}`);
  }

  /** State of a family's parent, or why it has been set aside. */
  readiness(family: string): Readiness {
    return this.#options.runtime.readiness(family);
  }

  /** Makes the parent of a family ready in the background: a help for its first task, not a promise. */
  prepare(_family: string, _spec: WorkerSpec): void {}

  /** What is not used for the time being, and why. */
  setAside(): SetAside[] {
    return [];
  }

  /** Tasks that run here now. */
  get running(): number {
    return 0;
  }

  /** Tasks that have ended here in a second, over the last minute or so. */
  get endedPerSecond(): number {
    return 0;
  }

  /**
   * Takes no more tasks, gives `drainMs` to those that run, then aborts them: they go back to the queue and
   * their attempt does not count.
   */
  async [Symbol.asyncDispose](): Promise<void> {}
}
