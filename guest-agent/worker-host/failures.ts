import type { Records } from "./records.ts";
import { currentRequestId } from "./scope.ts";

/** What `process.exit` throws in a worker, so that the code behind it does not run. */
export class WorkerExit extends Error {
  readonly exitCode: number;

  constructor(exitCode: number) {
    super(`The worker called process.exit(${exitCode})`);
    this.name = "WorkerExit";
    this.exitCode = exitCode;
  }
}

/** An error with its stack and its causes, for the log. Bun's stacks name the sources if the bundle has a map. */
export function describeFailure(error: unknown): { message: string; stack: string | undefined } {
  if (!(error instanceof Error)) return { message: `The worker threw ${printed(error)}`, stack: undefined };
  const parts: string[] = [];
  for (let current: unknown = error, depth = 0; current instanceof Error && depth < 5; depth++) {
    const head = `${current.name}: ${current.message}`;
    const stack = current.stack ?? head;
    // A stack may lack the message that was set after it was taken.
    const text = stack.includes(current.message) ? stack : `${head}\n${stack}`;
    parts.push(depth === 0 ? text : `Caused by ${text}`);
    current = current.cause;
  }
  return { message: error.message, stack: parts.join("\n") };
}

function printed(value: unknown): string {
  try {
    return String(value);
  } catch {
    return "a value that cannot be printed";
  }
}

/**
 * Reports what goes wrong outside of any handler, and `process.exit`, which then ends nothing but the
 * code that called it.
 *
 * @param onExit - the worker is not to be asked anything any more
 */
export function captureFailures(records: Records, onExit: (exit: WorkerExit) => void): void {
  const report = (kind: "uncaughtException" | "unhandledRejection") => (error: unknown) => {
    if (error instanceof WorkerExit) return; // that was reported when it was thrown
    records.fault({ kind, ...describeFailure(error), exitCode: undefined, requestId: currentRequestId() });
  };
  process.on("uncaughtException", report("uncaughtException"));
  process.on("unhandledRejection", report("unhandledRejection"));
  process.exit = (code?: number | string | null): never => {
    const exit = new WorkerExit(Number(code ?? process.exitCode ?? 0) & 0xff);
    records.fault({
      kind: "exit",
      message: exit.message,
      stack: exit.stack,
      exitCode: exit.exitCode,
      requestId: currentRequestId(),
    });
    onExit(exit);
    throw exit;
  };
}
