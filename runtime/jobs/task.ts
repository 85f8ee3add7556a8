import { codeOf, FlurryError } from "../../errors/errors.ts";
import { type AgentClient, AgentError } from "../../guest-agent/protocol/mod.ts";
import type { StartTimes } from "../fork/child.ts";
import type { WarmUp } from "../fork/open-parent.ts";
import { fetchOutputs, OUT_DIR, OutputDirectory, type OutputSink } from "./outputs.ts";

/**
 * What a parent of tasks runs before it is frozen: makes /out, and then `argv` if there is one. Even
 * without one, every child finds the shell and the C library in its page cache.
 */
export function taskWarmUp(argv: readonly string[] = []): WarmUp {
  const script = argv.length === 0 ? `mkdir -p ${OUT_DIR}` : `mkdir -p ${OUT_DIR} && exec "$@"`;
  return { argv: ["/bin/sh", "-c", script, "sh", ...argv] };
}

/** The VM that a task runs in: a forked child, or one that was booted for it. Gone when disposed. */
export interface TaskVm extends AsyncDisposable {
  id: string;
  agent: AgentClient;
  times: StartTimes;
  /** RAM of the guest in bytes. */
  memBytes: number;
  /** Host memory in bytes that exists for this VM alone. */
  privateBytes(): number;
  /** Turns an error of the agent's channel into the reason behind it, such as the VM's death. */
  explain(error: unknown): Promise<unknown>;
}

/** What a task is: one command in one VM. */
export interface TaskSpec {
  index: number;
  argv: readonly string[];
  env: Record<string, string>;
  cwd?: string | undefined;
  /** Files that are put into the VM first: path in the guest and content. */
  files?: readonly { path: string; data: Uint8Array; mode?: number }[] | undefined;
  /** What the command reads from its standard input. @default nothing */
  stdin?: Uint8Array | undefined;
  /** Directory that the task's /out goes to, all together or not at all. It must not exist. */
  outDir?: string | undefined;
  /** Takes the files of /out one by one, in place of a directory. */
  outputs?: OutputSink | undefined;
  /** @default no limit */
  timeoutMs?: number | undefined;
}

/** How a task ended. */
export interface TaskOutcome {
  /** Exit status; absent when a signal ended it. */
  code?: number | undefined;
  /** Name of the signal that ended it, such as SIGKILL. */
  signal?: string | undefined;
  /** Files of /out that arrived. */
  files: number;
  /** Milliseconds of the command alone. */
  commandMs: number;
}

export type OutputHandler = (stream: "stdout" | "stderr", chunk: Uint8Array) => void | Promise<void>;

/**
 * Runs a task in its VM. What it prints is handed on as it comes, and held back while the handler
 * is busy. Nothing is handed on any more once this has returned.
 *
 * @throws FlurryError TASK_TIMEOUT, CHILD_DIED, TASK_FAILED when the command cannot be started,
 * NO_SPACE, ABORTED
 */
export async function runTask(
  vm: TaskVm,
  spec: TaskSpec,
  onOutput: OutputHandler,
  signal?: AbortSignal,
): Promise<TaskOutcome> {
  const late = new AbortController();
  const { timeoutMs } = spec;
  // Not AbortSignal.timeout(): its timer would outlive a short task by the whole limit.
  const timer = timeoutMs === undefined ? undefined : setTimeout(() => late.abort(), timeoutMs);
  const limit = signal ? AbortSignal.any([signal, late.signal]) : late.signal;
  try {
    for (const file of spec.files ?? []) {
      await vm.agent.putFile(file.path, file.data, { mode: file.mode ?? 0o644, signal: limit });
    }
    const began = performance.now();
    const { code, signal: endedBy } = await runCommand(vm, spec, onOutput, limit);
    const commandMs = performance.now() - began;
    const files = await keepOutputs(vm, spec, limit);
    return { code, signal: endedBy, files, commandMs };
  } catch (error) {
    if (signal?.aborted) throw new FlurryError("ABORTED", `Task ${spec.index} was aborted`, { cause: error });
    if (late.signal.aborted) {
      throw new FlurryError("TASK_TIMEOUT", `Task ${spec.index} has not ended within ${timeoutMs} ms`, {
        cause: error,
      });
    }
    throw await taskError(vm, spec, error);
  } finally {
    clearTimeout(timer);
  }
}

async function runCommand(
  vm: TaskVm,
  spec: TaskSpec,
  onOutput: OutputHandler,
  signal: AbortSignal | undefined,
) {
  const { env, cwd, stdin } = spec;
  const command = await vm.agent.exec(spec.argv, { env, cwd, stdin: stdin !== undefined, signal });
  const over = new AbortController();
  try {
    const [exit] = await Promise.all([
      command.exited,
      forward(command.stdout, (chunk) => onOutput("stdout", chunk), over.signal),
      forward(command.stderr, (chunk) => onOutput("stderr", chunk), over.signal),
      command.stdin && stdin ? feed(command.stdin, stdin) : undefined,
    ]);
    return exit;
  } finally {
    over.abort();
  }
}

async function forward(
  source: ReadableStream<Uint8Array>,
  handler: (chunk: Uint8Array) => void | Promise<void>,
  over: AbortSignal,
) {
  for await (const chunk of source) {
    if (over.aborted) return;
    await handler(chunk);
  }
}

async function feed(stdin: WritableStream<Uint8Array>, bytes: Uint8Array): Promise<void> {
  const writer = stdin.getWriter();
  try {
    await writer.write(bytes);
    await writer.close();
  } catch (error) {
    // A program need not read all of it; whatever else is wrong also shows in its end.
    if (!(error instanceof AgentError) || error.errno !== "EPIPE") throw error;
  }
}

async function keepOutputs(vm: TaskVm, spec: TaskSpec, signal: AbortSignal | undefined): Promise<number> {
  if (spec.outputs) return await fetchOutputs(vm, spec.outputs, signal);
  if (spec.outDir === undefined) return 0;
  await using directory = await OutputDirectory.open(spec.outDir, signal);
  const files = await fetchOutputs(vm, directory, signal);
  await directory.publish();
  return files;
}

async function taskError(vm: TaskVm, spec: TaskSpec, error: unknown): Promise<unknown> {
  const explained = await vm.explain(error);
  if (explained instanceof FlurryError) return explained;
  const reason = error instanceof Error ? error.message : String(error);
  if (codeOf(error) === "ENOSPC") {
    return new FlurryError("NO_SPACE", `Cannot keep the outputs of task ${spec.index}: the disk is full`, {
      cause: error,
    });
  }
  if (codeOf(error) === "AGENT_REFUSED") {
    return new FlurryError("TASK_FAILED", `Task ${spec.index} did not run: ${reason}`, { cause: error });
  }
  return error;
}
