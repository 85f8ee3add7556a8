import { type ChildProcess, spawn } from "node:child_process";
import { chmodSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { flurryHome, flurryShm } from "../../runtime/home.ts";
import { processesOf } from "../../runtime/vm/owner.ts";

/** The repository's root. */
export const root = fileURLToPath(new URL("../..", import.meta.url));

/** What a command came to. */
export interface CliResult {
  status: number | null;
  signal: NodeJS.Signals | null;
  stdout: string;
  stderr: string;
}

/** A line of `--json`. */
export type CliEvent = { event: string } & Record<string, unknown>;

export interface CliOptions {
  env?: Record<string, string>;
  /** Runs in a pseudo-terminal, 100 columns wide: all that it shows comes as stdout. */
  terminal?: boolean;
  /** Does not keep stdout: for commands that print very much. */
  discard?: boolean;
  /** The program in place of `./flurry`, which the arguments follow. */
  program?: readonly string[];
}

/**
 * `./flurry` with directories of its own for what runs, so that a test sees all that a command leaves
 * behind, and nothing of other commands. Images and frozen parents are the machine's.
 */
export class CliSandbox implements AsyncDisposable {
  /** A directory for the test's files. */
  readonly directory = temporaryDirectory(join(tmpdir(), "flurry-cli-"));
  readonly run = temporaryDirectory(join(tmpdir(), "flurry-run-"));
  readonly shm = temporaryDirectory(`${flurryShm()}-test-`);
  readonly #running = new Set<CliRun>();

  /** Runs a command to its end. */
  flurry(args: readonly string[], options: CliOptions = {}): Promise<CliResult> {
    return this.start(args, options).ended;
  }

  start(args: readonly string[], options: CliOptions = {}): CliRun {
    const program = options.program ?? [join(root, "flurry")];
    const argv = options.terminal ? inTerminal([...program, ...args]) : [...program, ...args];
    const child = spawn(argv[0]!, argv.slice(1), {
      cwd: this.directory,
      env: {
        ...process.env,
        NO_COLOR: "1",
        FLURRY_HOME: flurryHome(),
        FLURRY_RUN: this.run,
        FLURRY_SHM: this.shm,
        ...options.env,
      },
      stdio: ["pipe", "pipe", "pipe"],
    });
    const run = new CliRun(child, options.discard ?? false);
    this.#running.add(run);
    void run.ended.then(() => this.#running.delete(run));
    return run;
  }

  /** Builds an image, or finds it in the cache, which takes no time. */
  async buildImage(recipe: string): Promise<void> {
    const { status, stderr } = await this.flurry(["image", "build", recipe]);
    if (status !== 0) throw new Error(`Cannot build image ${recipe}: ${stderr}`);
  }

  /** What commands left behind: processes by their pid, sockets and memory by their path. */
  leftovers(): string[] {
    const files = [this.run, this.shm].flatMap((dir) => readdirSync(dir).map((name) => join(dir, name)));
    return [...files, ...processesOf(this.run).map(String)];
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const run of this.#running) run.kill("SIGKILL");
    await Promise.all([...this.#running].map((run) => run.ended));
    for (const pid of processesOf(this.run)) process.kill(pid, "SIGKILL");
    for (const dir of [this.directory, this.run, this.shm]) rmSync(dir, { recursive: true, force: true });
  }
}

/** A command that runs. */
export class CliRun {
  readonly process: ChildProcess;
  /** Settles when the command has ended and all that it wrote has arrived. */
  readonly ended: Promise<CliResult>;
  readonly #waiting = new Set<() => void>();
  #stdout = "";
  #stderr = "";
  #over = false;

  constructor(child: ChildProcess, discard: boolean) {
    this.process = child;
    child.stdout?.setEncoding("utf8");
    if (!discard) {
      child.stdout?.on("data", (text: string) => {
        this.#stdout += text;
        this.#wake();
      });
    }
    child.stderr?.setEncoding("utf8").on("data", (text: string) => {
      this.#stderr += text;
      this.#wake();
    });
    this.ended = new Promise((resolve, reject) => {
      child.once("error", reject);
      child.once("close", (status, signal) => {
        this.#over = true;
        this.#wake();
        resolve({ status, signal, stdout: this.#stdout, stderr: this.#stderr });
      });
    });
  }

  get pid(): number {
    return this.process.pid!;
  }

  /** What it has written to stderr so far. */
  get stderr(): string {
    return this.#stderr;
  }

  /** Not through the child process: Deno would report that signal as its end, whatever its end was. */
  kill(signal: NodeJS.Signals): void {
    if (!this.#over) process.kill(this.pid, signal);
  }

  /** Waits until the command has written a text that matches, to stdout or to stderr. */
  async until(pattern: RegExp): Promise<RegExpExecArray> {
    for (;;) {
      const match = pattern.exec(this.#stdout) ?? pattern.exec(this.#stderr);
      if (match) return match;
      if (this.#over) throw new Error(`It ended without ${pattern}:\n${this.#stdout}\n${this.#stderr}`);
      await new Promise<void>((resolve) => this.#waiting.add(resolve));
    }
  }

  /** Largest resident memory so far, in bytes; 0 when it has ended. */
  peakMemory(): number {
    if (this.#over) return 0;
    const match = /^VmHWM:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${this.pid}/status`, "utf8"));
    return Number(match?.[1] ?? 0) * 1024;
  }

  #wake(): void {
    for (const resolve of this.#waiting) resolve();
    this.#waiting.clear();
  }
}

/** The lines of `--json`; throws at one that is no JSON. */
export function eventsOf(result: CliResult): CliEvent[] {
  return result.stdout
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line));
}

/** Lines of a text in order of the alphabet: tasks run in any order. */
export function sortedLines(text: string): string[] {
  return text.trimEnd().split("\n").sort();
}

/** The pseudo-terminal of script(1), which passes the exit status on. */
function inTerminal(argv: readonly string[]): string[] {
  const quoted = argv.map((word) => `'${word.replaceAll("'", "'\\''")}'`).join(" ");
  return ["script", "--quiet", "--return", "--command", `stty cols 100; exec ${quoted}`, "/dev/null"];
}

/** A new directory that QEMU's user can reach. */
function temporaryDirectory(prefix: string): string {
  const path = mkdtempSync(prefix);
  chmodSync(path, 0o755);
  return path;
}
