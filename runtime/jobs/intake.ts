import { FlurryError } from "../../errors/errors.ts";
import type { KeyLimits } from "../api/mod.ts";
import type { JobStore } from "./ports.ts";

/** Retry-After in seconds: least, most, and what is said when nothing is known. */
const LEAST_WAIT = 1;
const MOST_WAIT = 3600;
const UNKNOWN_WAIT = 30;

/** A job that is being submitted. What it has reserved is given back when it is disposed. */
export interface Incoming extends Disposable {
  /** Reserves room for more tasks. @throws FlurryError LIMIT_REACHED, QUEUE_FULL */
  add(tasks: number): Promise<void>;
}

/** Lets jobs in as far as the gateway's and the key's limits go; those that are still arriving count too. */
export class Intake {
  readonly #jobs: Pick<JobStore, "load">;
  readonly #waitingTasks: number;
  readonly #endedPerSecond: () => number;
  /** Jobs and tasks that are arriving, by owner. */
  readonly #arriving = new Map<string, { jobs: number; tasks: number }>();
  #arrivingTasks = 0;

  constructor(options: {
    jobs: Pick<JobStore, "load">;
    /** Most tasks that wait in the gateway. */
    waitingTasks: number;
    endedPerSecond: () => number;
  }) {
    this.#jobs = options.jobs;
    this.#waitingTasks = options.waitingTasks;
    this.#endedPerSecond = options.endedPerSecond;
  }

  /** Begins a job. @throws FlurryError LIMIT_REACHED, QUEUE_FULL */
  async enter(owner: string, limits: KeyLimits): Promise<Incoming> {
    const arriving = this.#arriving.get(owner) ?? { jobs: 0, tasks: 0 };
    this.#arriving.set(owner, arriving);
    arriving.jobs += 1;
    let reserved = 0;
    const incoming: Incoming = {
      add: async (tasks) => {
        reserved += tasks;
        arriving.tasks += tasks;
        this.#arrivingTasks += tasks;
        await this.#check(owner, limits, { arriving, reserved });
      },
      [Symbol.dispose]: () => {
        arriving.jobs -= 1;
        arriving.tasks -= reserved;
        this.#arrivingTasks -= reserved;
        reserved = 0;
        if (arriving.jobs === 0) this.#arriving.delete(owner);
      },
    };
    try {
      // Even the smallest job has one task.
      await this.#check(owner, limits, { arriving, reserved: 1 });
      return incoming;
    } catch (error) {
      incoming[Symbol.dispose]();
      throw error;
    }
  }

  async #check(
    owner: string,
    limits: KeyLimits,
    { arriving, reserved }: { arriving: { jobs: number; tasks: number }; reserved: number },
  ): Promise<void> {
    const own = await this.#jobs.load(owner);
    const { activeJobs = Number.POSITIVE_INFINITY, waitingTasks = Number.POSITIVE_INFINITY } = limits;
    if (own.activeJobs + arriving.jobs > activeJobs) {
      const message = `This key has ${own.activeJobs} of ${activeJobs} active jobs`;
      throw this.#refusal("LIMIT_REACHED", message, own.waitingTasks / Math.max(1, own.activeJobs));
    }
    const ownTasks = own.waitingTasks + Math.max(arriving.tasks, reserved);
    if (ownTasks > waitingTasks) {
      const message = `This key would have ${ownTasks} waiting tasks; it may have ${waitingTasks}`;
      if (reserved > waitingTasks) {
        throw new FlurryError("LIMIT_REACHED", message, { hint: "submit the tasks as several smaller jobs" });
      }
      throw this.#refusal("LIMIT_REACHED", message, ownTasks - waitingTasks);
    }
    const all = await this.#jobs.load();
    const tasks = all.waitingTasks + Math.max(this.#arrivingTasks, reserved);
    if (tasks > this.#waitingTasks) {
      const message = `The gateway would have ${tasks} waiting tasks; it takes ${this.#waitingTasks}`;
      throw this.#refusal("QUEUE_FULL", message, tasks - this.#waitingTasks);
    }
  }

  /** @param tasks - that have to end before there is room */
  #refusal(code: "LIMIT_REACHED" | "QUEUE_FULL", message: string, tasks: number): FlurryError {
    const rate = this.#endedPerSecond();
    const seconds = rate > 0 ? Math.ceil(tasks / rate) : UNKNOWN_WAIT;
    const retryAfterSeconds = Math.min(MOST_WAIT, Math.max(LEAST_WAIT, seconds));
    return new FlurryError(code, message, {
      hint: `try again in ${retryAfterSeconds} s, when some have ended`,
      retryAfterSeconds,
    });
  }
}
