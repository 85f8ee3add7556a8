import { createWriteStream } from "node:fs";
import { chmod, mkdir, rename, rm } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { codeOf, FlurryError } from "../../errors/errors.ts";
import type { AgentClient } from "../../guest-agent/protocol/mod.ts";
import type { StartTimes } from "../fork/child.ts";
import type { WarmUp } from "../fork/open-parent.ts";
import { temporaryPrefix } from "../vm/owner.ts";

/** Directory in the guest whose content a task leaves behind. */
export const OUT_DIR = "/out";

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
  /** Where the task's /out goes. It must not exist. */
  outDir?: string | undefined;
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
 * is busy. The outputs appear in `outDir` all together or not at all.
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
  const deadline = spec.timeoutMs === undefined ? undefined : AbortSignal.timeout(spec.timeoutMs);
  const limits = [signal, deadline].filter((one) => one !== undefined);
  const limit = limits.length === 0 ? undefined : AbortSignal.any(limits);
  try {
    for (const file of spec.files ?? []) {
      await vm.agent.putFile(file.path, file.data, { mode: file.mode ?? 0o644, signal: limit });
    }
    const began = performance.now();
    const { code, signal: endedBy } = await runCommand(vm, spec, onOutput, limit);
    const commandMs = performance.now() - began;
    const files = spec.outDir === undefined ? 0 : await fetchOutputs(vm, spec.outDir, limit);
    return { code, signal: endedBy, files, commandMs };
  } catch (error) {
    if (signal?.aborted) throw new FlurryError("ABORTED", `Task ${spec.index} was aborted`, { cause: error });
    if (deadline?.aborted) {
      throw new FlurryError("TASK_TIMEOUT", `Task ${spec.index} has not ended within ${spec.timeoutMs} ms`, {
        cause: error,
      });
    }
    throw await taskError(vm, spec, error);
  }
}

async function runCommand(
  vm: TaskVm,
  spec: TaskSpec,
  onOutput: OutputHandler,
  signal: AbortSignal | undefined,
) {
  const command = await vm.agent.exec(spec.argv, { env: spec.env, cwd: spec.cwd, signal });
  const [exit] = await Promise.all([
    command.exited,
    forward(command.stdout, (chunk) => onOutput("stdout", chunk)),
    forward(command.stderr, (chunk) => onOutput("stderr", chunk)),
  ]);
  return exit;
}

async function forward(
  source: ReadableStream<Uint8Array>,
  handler: (chunk: Uint8Array) => void | Promise<void>,
) {
  for await (const chunk of source) await handler(chunk);
}

/** Copies the guest's /out beside `outDir` and renames it. Returns the number of files. */
async function fetchOutputs(vm: TaskVm, outDir: string, signal: AbortSignal | undefined): Promise<number> {
  const entries = await vm.agent.list(OUT_DIR, { signal });
  const total = entries.reduce((sum, entry) => sum + entry.size, 0);
  // /out lies in the guest's memory: more than that is a sparse file, made to fill the host's disk.
  if (total > vm.memBytes) {
    throw new FlurryError(
      "TASK_FAILED",
      `${OUT_DIR} claims ${total} bytes, more than the guest's memory of ${vm.memBytes}`,
    );
  }
  // A name that says whose it is, so that what a killed run leaves here is found again.
  const staging = join(dirname(outDir), `${temporaryPrefix()}${basename(outDir)}`);
  await mkdir(staging, { recursive: true });
  try {
    let files = 0;
    for (const entry of entries) {
      const target = join(staging, entry.path);
      if (entry.type === "dir") await mkdir(target, { recursive: true });
      if (entry.type !== "file") continue;
      await mkdir(dirname(target), { recursive: true });
      const source = await vm.agent.getFile(join(OUT_DIR, entry.path), { signal });
      const limited = atMost(source, entry.size, entry.path);
      await pipeline(
        Readable.from(limited),
        createWriteStream(target, { flags: "wx" }),
        signal ? { signal } : {},
      );
      await chmod(target, entry.mode & 0o777);
      files += 1;
    }
    await rename(staging, outDir);
    return files;
  } finally {
    await rm(staging, { recursive: true, force: true });
  }
}

/** Passes on a file that the guest said has `bytes` bytes, and not one more. */
async function* atMost(source: ReadableStream<Uint8Array>, bytes: number, path: string) {
  let left = bytes;
  for await (const chunk of source) {
    left -= chunk.length;
    if (left < 0) throw new FlurryError("TASK_FAILED", `"${path}" grew while it was fetched`);
    yield chunk;
  }
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
