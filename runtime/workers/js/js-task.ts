import { codeOf, FlurryError } from "../../../errors/errors.ts";
import { WorkerError, type WorkerLog, workerLimits } from "../../../guest-agent/protocol/worker/mod.ts";
import type { Attempt, AttemptExit, AttemptIo } from "../../jobs/task-runtime.ts";
import { checkShape } from "../../json-shape.ts";
import type { JsChild } from "./js-child.ts";

const encoder = new TextEncoder();

/** Takes what a task's worker logs, in order; it never holds the worker up, whose log is bounded already. */
export class TaskLog {
  readonly #io: AttemptIo;
  #writing: Promise<void> = Promise.resolve();
  #error: { error: unknown } | undefined;

  constructor(io: AttemptIo) {
    this.#io = io;
  }

  /** What a worker prints is no part of its value, which is the task's result. */
  write({ text }: Pick<WorkerLog, "text">): void {
    const write = async () => {
      if (!this.#error) await this.#io.output("stderr", encoder.encode(`${text}\n`));
    };
    this.#writing = this.#writing.then(write).catch((error) => {
      this.#error ??= { error };
    });
  }

  /** Resolves when all has been taken. @throws whatever the output throws */
  async end(): Promise<void> {
    await this.#writing;
    if (this.#error) throw this.#error.error;
  }
}

/**
 * Calls a worker's `task(input, ctx)` in its child. The value that it returns is the task's result.
 *
 * @throws FlurryError TASK_FAILED when it throws, TASK_TIMEOUT, CHILD_DIED, ABORTED
 */
export async function runJsTask(
  child: Pick<JsChild, "worker" | "explain">,
  { index, input, timeoutMs }: Pick<Attempt, "index" | "input" | "timeoutMs">,
  log: TaskLog,
  signal: AbortSignal,
): Promise<AttemptExit> {
  try {
    const value = await child.worker.task(input === undefined ? null : JSON.parse(input), {
      signal,
      timeoutMs,
    });
    await log.end();
    return { value: resultOf(value, index) };
  } catch (error) {
    const reason = await child.explain(error);
    if (reason instanceof WorkerError && reason.code === "TASK_FAILED") {
      log.write({ text: reason.workerStack ?? reason.message });
    }
    await log.end();
    if (codeOf(reason) === "AGENT_TIMEOUT") {
      const message = `Task ${index} has not ended within ${timeoutMs} ms`;
      throw new FlurryError("TASK_TIMEOUT", message, { cause: error });
    }
    if (!(reason instanceof WorkerError)) throw reason;
    const code = reason.code === "TASK_FAILED" || reason.remote ? "TASK_FAILED" : undefined;
    if (code === undefined) throw reason;
    throw new FlurryError(code, reason.message, { cause: error });
  }
}

/** @throws FlurryError TASK_FAILED when it is more than results may hold */
function resultOf(value: unknown, index: number): string {
  const what = `The value of task ${index}`;
  try {
    const json = JSON.stringify(value);
    const bytes = Buffer.byteLength(json);
    // The guest has counted already, but it need not be honest, and numbers may be longer as we write them.
    if (bytes > workerLimits.VALUE_MAX) {
      throw new FlurryError("TASK_FAILED", `${what} takes ${bytes} bytes as JSON`, {
        hint: `return at most ${workerLimits.VALUE_MAX} bytes, and send the rest elsewhere with fetch()`,
      });
    }
    checkShape(json, what);
    return json;
  } catch (error) {
    if (codeOf(error) === "TASK_FAILED") throw error;
    throw new FlurryError("TASK_FAILED", error instanceof Error ? error.message : `${what} is no JSON`, {
      cause: error,
    });
  }
}
