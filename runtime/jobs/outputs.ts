import { createWriteStream } from "node:fs";
import { chmod, mkdir, rename, rm } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { codeOf, FlurryError } from "../../errors/errors.ts";
import type { AgentClient, AgentEntry } from "../../guest-agent/protocol/mod.ts";
import { temporaryPrefix } from "../vm/owner.ts";

/** Directory in the guest whose content a task leaves behind. */
export const OUT_DIR = "/out";
/** Longest path of a file, in bytes (PATH_MAX without its NUL), and longest name in it (NAME_MAX). */
const PATH_BYTES = 4095;
const NAME_BYTES = 255;

/** A file of /out. */
export interface OutputFile {
  /** Below /out, with `/` between names; never leads out of it. */
  path: string;
  /** Permission bits, without those that give privileges. */
  mode: number;
  /** Bytes that it had when /out was listed; it gives no more than these. */
  size: number;
}

/** Where the files of /out go. */
export interface OutputSink {
  /** A directory, which may stay empty. It comes before what is in it. */
  directory?(path: string): Promise<void>;
  file(file: OutputFile, content: AsyncIterable<Uint8Array>): Promise<void>;
}

/** The VM whose /out is fetched. */
export interface OutputSource {
  agent: Pick<AgentClient, "list" | "getFile">;
  /** RAM of the guest in bytes. */
  memBytes: number;
}

/**
 * Hands the guest's /out to a sink, file by file, by path. Symbolic links and devices stay behind.
 *
 * @returns the number of files
 * @throws FlurryError TASK_FAILED when /out is not what it can be; AgentError; whatever the sink throws
 */
export async function fetchOutputs(
  vm: OutputSource,
  sink: OutputSink,
  signal?: AbortSignal,
): Promise<number> {
  const entries = await listOutputs(vm, signal);
  let files = 0;
  for (const { path, type, mode, size } of entries) {
    if (type === "dir") await sink.directory?.(path);
    if (type !== "file") continue;
    await sink.file({ path, mode: mode & 0o777, size }, readOutput(vm, path, size, signal));
    files += 1;
  }
  return files;
}

async function listOutputs(vm: OutputSource, signal: AbortSignal | undefined): Promise<AgentEntry[]> {
  const entries = await vm.agent.list(OUT_DIR, { signal }).catch((error) => {
    throw refused(error, OUT_DIR);
  });
  checkOutputs(entries, vm.memBytes);
  return entries;
}

/**
 * Checks what a guest says about its /out: it may be hostile, and its paths are joined to directories
 * and keys of the host.
 *
 * @throws FlurryError TASK_FAILED
 */
export function checkOutputs(entries: readonly AgentEntry[], memBytes: number): void {
  const seen = new Map<string, AgentEntry["type"]>();
  for (const { path, type } of entries) {
    const fault = pathFault(path) ?? (seen.has(path) ? "is there twice" : undefined);
    if (fault) throw badOutput(path, fault);
    seen.set(path, type);
  }
  for (const path of seen.keys()) {
    for (let at = path.indexOf("/"); at >= 0; at = path.indexOf("/", at + 1)) {
      const above = seen.get(path.slice(0, at));
      if (above !== undefined && above !== "dir") throw badOutput(path, "lies below what is no directory");
    }
  }
  const total = entries.reduce((sum, { size }) => sum + size, 0);
  // /out lies in the guest's memory: more than that is a sparse file, made to fill the host's disk.
  if (total > memBytes) {
    throw new FlurryError(
      "TASK_FAILED",
      `${OUT_DIR} claims ${total} bytes, more than the guest's memory of ${memBytes}`,
    );
  }
}

function pathFault(path: string): string | undefined {
  const names = path.split("/");
  if (path.includes("\0")) return "holds a NUL";
  if (names.some((name) => name === "" || name === "." || name === "..")) return "is no plain relative path";
  if (Buffer.byteLength(path) > PATH_BYTES || names.some((name) => Buffer.byteLength(name) > NAME_BYTES))
    return "is too long";
  return undefined;
}

function badOutput(path: string, fault: string): FlurryError {
  return new FlurryError(
    "TASK_FAILED",
    `The output ${JSON.stringify(path.slice(0, 200))} is refused: it ${fault}`,
  );
}

/** The bytes of a file that the guest said has `size` bytes, and not one more. */
async function* readOutput(vm: OutputSource, path: string, size: number, signal: AbortSignal | undefined) {
  let left = size;
  try {
    for await (const chunk of vm.agent.getFile(join(OUT_DIR, path), { signal })) {
      left -= chunk.length;
      if (left < 0) throw new FlurryError("TASK_FAILED", `"${path}" grew while it was fetched`);
      yield chunk;
    }
  } catch (error) {
    throw refused(error, path);
  }
}

function refused(error: unknown, path: string): unknown {
  if (codeOf(error) !== "AGENT_REFUSED") return error;
  const reason = error instanceof Error ? error.message : String(error);
  return new FlurryError("TASK_FAILED", `The output "${path}" cannot be fetched: ${reason}`, {
    cause: error,
  });
}

/** A directory that outputs come to all together, or not at all. */
export class OutputDirectory implements OutputSink, AsyncDisposable {
  readonly #target: string;
  readonly #staging: string;
  readonly #signal: AbortSignal | undefined;

  private constructor(target: string, staging: string, signal: AbortSignal | undefined) {
    this.#target = target;
    this.#staging = staging;
    this.#signal = signal;
  }

  /** @param target - appears at `publish`, and must not exist before */
  static async open(target: string, signal?: AbortSignal): Promise<OutputDirectory> {
    // Beside it, under a name that says whose it is: what a killed run leaves here is found again.
    const staging = join(dirname(target), `${temporaryPrefix()}${basename(target)}`);
    await mkdir(staging, { recursive: true });
    return new OutputDirectory(target, staging, signal);
  }

  async directory(path: string): Promise<void> {
    await mkdir(join(this.#staging, path), { recursive: true });
  }

  async file({ path, mode }: OutputFile, content: AsyncIterable<Uint8Array>): Promise<void> {
    const target = join(this.#staging, path);
    await mkdir(dirname(target), { recursive: true });
    const signal = this.#signal;
    await pipeline(
      Readable.from(content),
      createWriteStream(target, { flags: "wx" }),
      signal ? { signal } : {},
    );
    await chmod(target, mode);
  }

  async publish(): Promise<void> {
    await rename(this.#staging, this.#target);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await rm(this.#staging, { recursive: true, force: true });
  }
}
