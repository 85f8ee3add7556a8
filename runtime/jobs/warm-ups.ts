import { getLogger } from "@logtape/logtape";
import type { WorkerSpec } from "../api/mod.ts";
import type { TaskRuntime } from "./task-runtime.ts";

/** Most parents that are made ready ahead of their first task, at a time and waiting. */
const MOST = 8;
const logger = getLogger(["flurry", "jobs"]);

/** Makes parents ready before a task needs them, one after the other. What is too much is left to the tasks. */
export class WarmUps implements AsyncDisposable {
  readonly #runtime: TaskRuntime;
  readonly #stop = new AbortController();
  readonly #families = new Set<string>();
  #last: Promise<void> = Promise.resolve();

  constructor(runtime: TaskRuntime) {
    this.#runtime = runtime;
  }

  add(family: string, spec: WorkerSpec): void {
    if (this.#families.has(family) || this.#families.size >= MOST) return;
    this.#families.add(family);
    this.#last = this.#last.then(() => this.#prepare(family, spec));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort();
    await this.#last;
  }

  async #prepare(family: string, spec: WorkerSpec): Promise<void> {
    try {
      await this.#runtime.prepare(family, spec, this.#stop.signal);
    } catch (error) {
      // People see it as the worker's state; its first task meets it again.
      if (!this.#stop.signal.aborted) logger.info("Cannot prepare {family}: {error}", { family, error });
    } finally {
      this.#families.delete(family);
    }
  }
}
