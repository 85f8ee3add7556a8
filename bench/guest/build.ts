import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdir, mkdtemp, readFile, rename, rm, stat } from "node:fs/promises";
import { homedir } from "node:os";
import { basename, join } from "node:path";
import { promisify } from "node:util";
import { codeOf, FlurryError } from "../../errors/errors.ts";

const run = promisify(execFile);

const COMPILER = "musl-gcc";
const FLAGS = ["-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-O2", "-static", "-s"];

/** Source of the program that measures page faults: see the file's head for what it does. */
export const FAULTS_SOURCE = join(import.meta.dirname, "faults.c");

/** Source of the program that sees from inside what a fork takes. */
export const REFORK_SOURCE = join(import.meta.dirname, "refork.c");

export interface BuildGuestProgramOptions {
  /** @default `$XDG_CACHE_HOME/flurry/bench`, or `~/.cache/flurry/bench` */
  cacheDir?: string | undefined;
  signal?: AbortSignal | undefined;
}

/**
 * Compiles one C file into a static program for the guest, or finds it in the cache, whose key is the
 * hash of the source, the compiler and the flags.
 *
 * @returns the program's bytes: what a parent's `files` take
 * @throws FlurryError REQUIREMENT_MISSING without the compiler, INTERNAL when the source does not compile,
 * ABORTED
 */
export async function buildGuestProgram(
  source: string,
  { cacheDir = defaultCacheDir(), signal }: BuildGuestProgramOptions = {},
): Promise<Buffer> {
  const version = await compiler(["--version"], signal);
  const hash = createHash("sha256")
    .update(JSON.stringify([version, FLAGS]))
    // With all that it includes.
    .update(await compiler([...FLAGS, "-E", "-P", source], signal));
  const name = basename(source, ".c");
  const path = join(cacheDir, `${name}-${hash.digest("hex").slice(0, 32)}`);
  if (!(await stat(path).catch(missing))) {
    await mkdir(cacheDir, { recursive: true });
    const work = await mkdtemp(join(cacheDir, "building-"));
    try {
      await compiler([...FLAGS, "-o", join(work, name), source], signal);
      // Of the same content, if somebody else was faster.
      await rename(join(work, name), path);
    } finally {
      await rm(work, { recursive: true, force: true });
    }
  }
  return await readFile(path);
}

function defaultCacheDir(): string {
  return join(process.env.XDG_CACHE_HOME || join(homedir(), ".cache"), "flurry", "bench");
}

async function compiler(args: string[], signal: AbortSignal | undefined): Promise<string> {
  try {
    return (await run(COMPILER, args, signal ? { signal } : {})).stdout;
  } catch (error) {
    if (signal?.aborted) throw new FlurryError("ABORTED", "The build was aborted", { cause: error });
    if (codeOf(error) === "ENOENT") {
      const hint = "apt-get install musl-tools";
      throw new FlurryError("REQUIREMENT_MISSING", `${COMPILER} is not in PATH`, { cause: error, hint });
    }
    const output = error instanceof Error && "stderr" in error ? String(error.stderr).trim() : String(error);
    throw new FlurryError("INTERNAL", `Cannot build a program for the guest: ${output}`, { cause: error });
  }
}

function missing(error: unknown): undefined {
  if (codeOf(error) !== "ENOENT") throw error;
}
