import { type ChildProcess, spawn } from "node:child_process";
import { FlurryError } from "../../errors/errors.ts";

const tailLines = 60;

export interface RunOptions {
  cwd?: string;
  env?: Record<string, string>;
  /** Text for standard input. Without it standard input is empty. */
  input?: string;
  /**
   * Keeps standard input open without writing to it, so that the program sees it end if this
   * process dies.
   */
  lifeline?: boolean;
  /** Called with each line of standard error and, if `collect` is false, of standard output. */
  onLine?: (line: string) => void;
  /**
   * Whether standard output is kept and returned.
   * @default true
   */
  collect?: boolean;
  signal?: AbortSignal | undefined;
}

export interface RunResult {
  exitCode: number;
  /** Standard output, empty if it was not collected. */
  stdout: string;
  /** The last lines of what was not collected: standard error, and standard output in order of arrival. */
  tail: string[];
}

/** The Debian package of each program the builder calls. */
const debianPackages: Record<string, string> = {
  "apt-get": "apt",
  "apt-cache": "apt",
  "apt-config": "apt",
  dpkg: "dpkg",
  "dpkg-deb": "dpkg",
  flock: "util-linux",
  mmdebstrap: "mmdebstrap",
  newuidmap: "uidmap",
  newgidmap: "uidmap",
  tar: "tar",
  tar2sqfs: "squashfs-tools-ng",
  xz: "xz-utils",
  zstd: "zstd",
};

/** The Debian package that holds a program. */
export function debianPackageOf(program: string): string {
  return debianPackages[program] ?? program;
}

/**
 * Runs a program in its own process group and waits until it and everything that holds its
 * standard error is gone. An abort kills the group at once: what runs in mmdebstrap's PID namespace
 * would ignore SIGTERM, its mounts end with its mount namespace, and its files lie in our scratch.
 *
 * @throws FlurryError REQUIREMENT_MISSING if the program is not installed, the signal's reason if aborted
 */
export async function run(program: string, args: string[], options: RunOptions = {}): Promise<RunResult> {
  const { signal, onLine, collect = true } = options;
  signal?.throwIfAborted();
  const child = spawn(program, args, {
    cwd: options.cwd,
    // A fixed locale: the messages are parsed.
    env: { ...process.env, ...options.env, LC_ALL: "C.UTF-8" },
    stdio: [options.input === undefined && !options.lifeline ? "ignore" : "pipe", "pipe", "pipe"],
    detached: true,
  });
  const stopWatching = killOnAbort(child, signal);
  try {
    return await collectOutput(child, program, { input: options.input, onLine, collect });
  } finally {
    stopWatching();
    signal?.throwIfAborted();
  }
}

/** As `run`, and a non-zero exit is an IMAGE_BUILD_FAILED error that carries the end of the output. */
export async function runOrFail(program: string, args: string[], options: RunOptions = {}): Promise<string> {
  const result = await run(program, args, options);
  if (result.exitCode !== 0)
    throw failure(`"${program}" failed with exit code ${result.exitCode}`, result.tail);
  return result.stdout;
}

/** An error for a failed step; a full disk, seen in the tool's output, is NO_SPACE. */
export function failure(message: string, tail: string[]): FlurryError {
  const text = tail.slice(-20).join("\n").trim();
  const noSpace = tail.some((line) => /No space left on device|not enough free space/i.test(line));
  return new FlurryError(
    noSpace ? "NO_SPACE" : "IMAGE_BUILD_FAILED",
    noSpace ? `No space left on device: ${message}` : text === "" ? message : `${message}:\n${text}`,
    noSpace ? { hint: "Free space, or set TMPDIR and FLURRY_HOME to directories that have some" } : {},
  );
}

function collectOutput(
  child: ChildProcess,
  program: string,
  how: { input: string | undefined; onLine: ((line: string) => void) | undefined; collect: boolean },
): Promise<RunResult> {
  const { promise, resolve, reject } = Promise.withResolvers<RunResult>();
  const tail: string[] = [];
  function takeLine(line: string): void {
    tail.push(line);
    if (tail.length > tailLines) tail.shift();
    how.onLine?.(line);
  }
  const errors = lineSplitter(takeLine);
  const output = lineSplitter(takeLine);
  let stdout = "";
  child.stderr?.setEncoding("utf8").on("data", errors.push);
  child.stdout?.setEncoding("utf8").on("data", (chunk: string) => {
    if (how.collect) stdout += chunk;
    else output.push(chunk);
  });
  child.on("error", (cause: NodeJS.ErrnoException) => {
    reject(cause.code === "ENOENT" ? missingProgram(program, cause) : cause);
  });
  child.on("close", (code, killedBy) => {
    errors.end();
    output.end();
    if (killedBy !== null) takeLine(`${program} was ended by ${killedBy}`);
    resolve({ exitCode: code ?? 128, stdout, tail });
  });
  if (how.input !== undefined) {
    // A child that ends without reading all of its input says so by its exit code.
    child.stdin?.on("error", (error) => takeLine(`Cannot write to ${program}: ${error.message}`));
    child.stdin?.end(how.input);
  }
  return promise;
}

function missingProgram(program: string, cause: unknown): FlurryError {
  const name = debianPackageOf(program);
  return new FlurryError(
    "REQUIREMENT_MISSING",
    `Program "${program}" is not installed (Debian package ${name})`,
    {
      cause,
      hint: `Install it: apt-get install ${name}`,
    },
  );
}

/** Kills the child's process group when the signal fires. Returns what stops the watching. */
function killOnAbort(child: ChildProcess, signal: AbortSignal | undefined): () => void {
  const onAbort = () => killGroup(child);
  signal?.addEventListener("abort", onAbort, { once: true });
  return () => signal?.removeEventListener("abort", onAbort);
}

function killGroup(child: ChildProcess): void {
  if (child.pid === undefined) return;
  try {
    process.kill(-child.pid, "SIGKILL");
  } catch (error) {
    // ESRCH: the group ended by itself in the meantime.
    if ((error as NodeJS.ErrnoException).code !== "ESRCH") throw error;
  }
}

function lineSplitter(take: (line: string) => void): { push: (chunk: string) => void; end: () => void } {
  let rest = "";
  return {
    push(chunk) {
      // Progress bars overwrite themselves with carriage returns.
      const parts = (rest + chunk).split(/[\r\n]+/);
      rest = parts.pop() ?? "";
      for (const part of parts) if (part !== "") take(part);
    },
    end() {
      if (rest !== "") take(rest);
      rest = "";
    },
  };
}
