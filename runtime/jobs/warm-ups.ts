import { getLogger } from "@logtape/logtape";
import type { WorkerSpec } from "../api/mod.ts";
import type { TaskRuntime } from "./task-runtime.ts";

/** Most parents that wait to be made ready ahead of their first task. What is too much is left to the tasks. */
const MOST = 1000;
const logger = getLogger(["flurry", "jobs"]);

/** Gives a family's description when its turn has come: many may wait, and each may have megabytes of code. */
export type SpecSource = () => Promise<WorkerSpec | undefined>;

/** Makes parents ready before a task needs them, one after the other. */
export class WarmUps implements AsyncDisposable {
  readonly #runtime: TaskRuntime;
  readonly #onChange: (family: string) => void;
  readonly #stop = new AbortController();
  /** In the order of their turns. */
  readonly #families = new Set<string>();
  #last: Promise<void> = Promise.resolve();

  /** @param onChange - called after `stateOf` of a family has changed */
  constructor(runtime: TaskRuntime, onChange: (family: string) => void) {
    this.#runtime = runtime;
    this.#onChange = onChange;
  }

  /** @param spec - undefined when nobody needs it any more */
  add(family: string, spec: SpecSource): void {
    if (this.#families.has(family) || this.#families.size >= MOST) return;
    this.#families.add(family);
    this.#onChange(family);
    this.#last = this.#last.then(() => this.#prepare(family, spec));
  }

  /** Whether a family is being made ready, or waits for its turn; undefined if neither. */
  stateOf(family: string): "now" | "later" | undefined {
    if (!this.#families.has(family)) return undefined;
    const [first] = this.#families;
    return first === family ? "now" : "later";
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort();
    await this.#last;
  }

  async #prepare(family: string, source: SpecSource): Promise<void> {
    this.#onChange(family);
    try {
      const spec = this.#stop.signal.aborted ? undefined : await source();
      if (spec) await this.#runtime.prepare(family, spec, this.#stop.signal);
    } catch (error) {
      // People see it as the worker's state; its first task meets it again.
      if (!this.#stop.signal.aborted) logger.info("Cannot prepare {family}: {error}", { family, error });
    } finally {
      this.#families.delete(family);
      this.#onChange(family);
    }
  }
}
