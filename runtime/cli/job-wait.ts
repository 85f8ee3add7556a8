import type { FlurryClient, Job, TaskResult } from "../client/mod.ts";
import { formatMs } from "./format.ts";
import type { Output } from "./output.ts";
import type { PacedSink } from "./paced-sink.ts";
import { cliSignal } from "./signal.ts";

export interface ShowOptions {
  output: Output;
  /** What `output` writes results to. */
  out: PacedSink;
}

/**
 * Shows how a job goes on until it has ended, then its results. The exit code becomes 4 unless all tasks
 * succeeded.
 */
export async function waitFor(client: FlurryClient, job: Job, { output, out }: ShowOptions): Promise<void> {
  using progress = output.progress(`Job ${job.id}`, job.tasks.total);
  let done: Job;
  try {
    done = await client.jobs.wait(job.id, {
      onEvent: ({ type, task, error }) => {
        if (type === "task.succeeded" || type === "task.failed" || type === "task.canceled") {
          progress.advance(1, error?.message ?? "");
        } else if (type === "task.retrying") {
          progress.describe(`task ${task} is tried again: ${error?.message ?? ""}`);
        }
      },
    });
  } catch (error) {
    if (cliSignal().aborted) output.note(`The job goes on; to end it: flurry job cancel ${job.id}`);
    throw error;
  }
  progress.finish(summaryOf(done));
  for await (const result of client.jobs.results(done.id)) {
    showResult(output, result, done.id);
    await out.drained;
  }
  const { total, succeeded, failed, canceled } = done.tasks;
  output.emit({ event: "done", job: done.id, state: done.state, succeeded, failed, canceled });
  if (succeeded < total) process.exitCode = 4;
}

/** Shows how a task ended: the value that it returned, its output by lines, and why it failed. */
export function showResult(output: Output, result: TaskResult, job: string): void {
  const { index, stdout, state, error, exitCode, signal } = result;
  output.emit({ event: "result", ...result });
  if (result.value !== undefined) output.print(`[${index}] ${JSON.stringify(result.value)}`);
  if (stdout !== "") {
    const lines = stdout.replace(/\n$/, "").split("\n");
    output.print(lines.map((line) => `[${index}] ${line}`).join("\n"));
  }
  if (result.stdoutTruncated) {
    output.note(`[${index}] printed more: flurry job logs ${job} --task ${index}`);
  }
  if (state === "succeeded") return;
  const how = signal === undefined ? `exit status ${exitCode ?? "unknown"}` : `signal ${signal}`;
  const why = error ? `${error.message} (${error.code})` : state === "canceled" ? "" : how;
  output.note(`[${index}] ${state}${why === "" ? "" : `: ${why}`}`);
}

function summaryOf({ state, reason, tasks, startedAt, endedAt }: Job): string {
  const ran = startedAt !== undefined && endedAt !== undefined;
  const time = ran ? ` in ${formatMs(Math.max(0, Date.parse(endedAt) - Date.parse(startedAt)))}` : "";
  const became = state === "canceled" ? "was canceled" : `has ${state}`;
  const why = state === "succeeded" ? "" : ` (${reason})`;
  return `${tasks.succeeded} of ${tasks.total} tasks succeeded${time}; the job ${became}${why}`;
}
