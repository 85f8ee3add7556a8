import { spawn } from "node:child_process";
import { readFile } from "node:fs/promises";
import { codeOf } from "../../errors/errors.ts";
import { countJunit } from "./junit.ts";
import type { TestStep } from "./test-layers.ts";

/** What one step came to. `reason` says why a step failed that no test of it accounts for. */
export interface StepResult {
  name: string;
  passed: number;
  failed: number;
  skipped: number;
  ms: number;
  output: string;
  reason?: string;
}

interface ProcessEnd {
  exitCode: number | null;
  signal: NodeJS.Signals | null;
  output: string;
  timedOut: boolean;
}

export interface RunStepOptions {
  cwd: string;
  timeoutMs: number;
  signal?: AbortSignal;
}

/**
 * Runs one step and counts its tests. A runner that crashed, hung, could not load its file or failed
 * outside of any test counts as one failure more.
 */
export async function runStep(step: TestStep, options: RunStepOptions): Promise<StepResult> {
  const start = performance.now();
  const end = await runProcess(step.argv, options);
  const counts =
    step.report === undefined
      ? { passed: 0, failed: 0, skipped: 0 }
      : countJunit(await readReport(step.report));
  const reason = failureReason(end, options.timeoutMs);
  if (step.report === undefined && reason === undefined) counts.passed = 1;
  const unaccounted = reason !== undefined && (counts.failed === 0 || end.exitCode === null);
  if (unaccounted) counts.failed += 1;
  const result = { name: step.name, ...counts, ms: performance.now() - start, output: end.output };
  return unaccounted ? { ...result, reason } : result;
}

function failureReason(end: ProcessEnd, timeoutMs: number): string | undefined {
  if (end.timedOut) return `Still running after ${timeoutMs / 1000} s: ended`;
  if (end.signal !== null) return `Ended by ${end.signal}`;
  return end.exitCode === 0 ? undefined : `Exit code ${end.exitCode}`;
}

async function readReport(path: string): Promise<string> {
  try {
    return await readFile(path, "utf8");
  } catch (error) {
    // No report: the runner ended before it could write one, which its exit code tells.
    if (codeOf(error) === "ENOENT") return "";
    throw error;
  }
}

/** Runs a program in a process group of its own, which ends as a whole. */
function runProcess(argv: readonly string[], options: RunStepOptions): Promise<ProcessEnd> {
  options.signal?.throwIfAborted();
  const [program, ...args] = argv;
  return new Promise((resolve, reject) => {
    const child = spawn(program!, args, {
      cwd: options.cwd,
      env: testEnvironment(),
      stdio: ["ignore", "pipe", "pipe"],
      detached: true,
    });
    const chunks: Buffer[] = [];
    child.stdout.on("data", (chunk: Buffer) => chunks.push(chunk));
    child.stderr.on("data", (chunk: Buffer) => chunks.push(chunk));
    let timedOut = false;
    const endGroup = (signal: NodeJS.Signals) => killGroup(child.pid, signal);
    const onAbort = () => endGroup("SIGTERM");
    const timer = setTimeout(() => {
      timedOut = true;
      endGroup("SIGKILL");
    }, options.timeoutMs);
    options.signal?.addEventListener("abort", onAbort, { once: true });
    const settle = () => {
      clearTimeout(timer);
      options.signal?.removeEventListener("abort", onAbort);
    };
    child.once("error", (error) => {
      settle();
      reject(error);
    });
    // What a step left running in its group would hold the pipes open and disturb the next step.
    child.once("exit", () => endGroup("SIGKILL"));
    child.once("close", (exitCode, signal) => {
      settle();
      if (options.signal?.aborted) reject(options.signal.reason);
      else resolve({ exitCode, signal, output: Buffer.concat(chunks).toString("utf8"), timedOut });
    });
  });
}

function killGroup(pid: number | undefined, signal: NodeJS.Signals): void {
  if (pid === undefined) return;
  try {
    process.kill(-pid, signal);
  } catch (error) {
    // The group is gone already.
    if (codeOf(error) !== "ESRCH") throw error;
  }
}

/** Runners show all of their output, uncoloured, whoever started us. */
function testEnvironment(): NodeJS.ProcessEnv {
  const { CLAUDECODE: _claude, AGENT: _agent, REPL_ID: _repl, FORCE_COLOR: _color, ...rest } = process.env;
  return { ...rest, NO_COLOR: "1", DENO_NO_UPDATE_CHECK: "1" };
}
