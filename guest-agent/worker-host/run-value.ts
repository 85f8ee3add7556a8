import { exit, isForked } from "../bindings/src/vm.ts";
import { SCHEDULED_WAIT_MS, workerLimits } from "../protocol/worker/constants.ts";
import type { Waits } from "./context.ts";
import { describeFailure } from "./failures.ts";
import type { Operation } from "./operation.ts";
import { cut } from "./records.ts";
import type { Runner } from "./runner.ts";

/** Runs one task: JSON in, JSON out. Never rejects. */
export async function runTask(runner: Runner, operation: Operation, requestId: string): Promise<void> {
  const { context, waits } = runner.begin(operation, requestId);
  try {
    const input: unknown = await new Response(operation.input).json();
    const bytes = jsonOf(await runner.handlers.task?.(input, context));
    if (isForked()) await leave(runner, waits, 0, bytes);
    await operation.write(bytes);
    operation.end();
  } catch (error) {
    if (isForked()) await leave(runner, waits, 1, Buffer.from(describeFailure(error).message));
    failWith(operation, error);
  }
  operation.done(await waits.settle());
}

/** Tells the worker of one event of a schedule. Never rejects. */
export async function runScheduled(
  runner: Runner,
  operation: Operation,
  event: { requestId: string; cron: string; time: number },
): Promise<void> {
  const { context, waits } = runner.begin(operation, event.requestId);
  try {
    const scheduled = { cron: event.cron, scheduledTime: event.time };
    await runner.handlers.scheduled?.(scheduled, runner.env, context);
    operation.end();
  } catch (error) {
    failWith(operation, error);
  }
  // Here it is not what is left after an answer, but often all of the work.
  operation.done(await waits.settle(SCHEDULED_WAIT_MS));
}

/**
 * A task that has forked its VM ends in each child, too, where nobody hears of its value: the child exits with it.
 * Returns only if it cannot.
 */
async function leave(runner: Runner, waits: Waits, status: number, result: Uint8Array): Promise<void> {
  try {
    await waits.settle();
    await exit(status, result.subarray(0, workerLimits.VALUE_MAX));
  } catch (error) {
    runner.logFailure(error);
  }
}

function failWith(operation: Operation, error: unknown): void {
  if (operation.signal.aborted) return;
  const { message, stack } = describeFailure(error);
  const shortStack = stack === undefined ? undefined : cut(stack, workerLimits.STACK_MAX);
  operation.fail("WORKER_FAILED", cut(message, workerLimits.MESSAGE_MAX), shortStack);
}

function jsonOf(value: unknown): Uint8Array {
  const text = JSON.stringify(value ?? null);
  if (text === undefined) throw new TypeError(`A task's value must be JSON, it is of type ${typeof value}`);
  const bytes = new TextEncoder().encode(text);
  if (bytes.length <= workerLimits.VALUE_MAX) return bytes;
  throw new RangeError(
    `The task's value takes ${bytes.length} bytes as JSON: return at most ${workerLimits.VALUE_MAX}, and send ` +
      "the rest elsewhere with fetch()",
  );
}
