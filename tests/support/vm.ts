import { type ChildProcessByStdio, execFile, spawn, spawnSync } from "node:child_process";
import { chmodSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, readlinkSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Readable } from "node:stream";
import { promisify } from "node:util";
import { buildImage, type Image } from "../../guest-agent/image/mod.ts";
import { type OpenParentOptions, openParent } from "../../runtime/fork/open-parent.ts";
import type { Parent } from "../../runtime/fork/parent.ts";
import { flurryHome, isRoot } from "../../runtime/home.ts";
import { taskWarmUp } from "../../runtime/jobs/task.ts";
import type { Host } from "../../runtime/vm/host.ts";
import { processesOf } from "../../runtime/vm/owner.ts";

/** Milliseconds for a hook that may have to build the image and to boot its parent. */
export const SETUP_MS = 300_000;
/** Milliseconds for a test with VMs on a machine that has other things to do: a bound, no expectation. */
export const TEST_MS = 120_000;

/** The `base` image, from the cache of the data directory; built there by the first test that needs it. */
export function baseImage(): Promise<Image> {
  return buildImage("base", { home: flurryHome() });
}

/** A frozen parent of the `base` image that is booted once and then shared by all tests through the disk. */
export async function baseParent(host: Host, options: Partial<OpenParentOptions> = {}): Promise<Parent> {
  const image = await baseImage();
  const { parent } = await openParent({ host, image, warmUp: taskWarmUp(), ...options });
  return parent;
}

/** What a runtime has on this machine. */
export interface Traces {
  /** Ids of the processes that name its directories. */
  processes: number[];
  /** Paths of its files, below both of its directories. */
  files: string[];
}

/** What a runtime that runs has now: of its VMs, that is, as it has nothing else. */
export function tracesOf(host: Host): Traces {
  const { run, shm } = host.owner;
  return {
    processes: [...new Set([...processesOf(run), ...processesOf(shm)])],
    files: [run, shm].flatMap((dir) => readdirSync(dir).map((name) => join(dir, name))),
  };
}

export const NO_TRACES: Traces = { processes: [], files: [] };

/** Sockets, pipes and files that a process has open, without what only the runtime itself uses. */
export function openDescriptors(pid: number | "self" = "self"): string[] {
  return readdirSync(`/proc/${pid}/fd`)
    .flatMap((fd) => {
      try {
        return [readlinkSync(`/proc/${pid}/fd/${fd}`)];
      } catch (error) {
        // Closed since, as this directory's own descriptor is.
        if (error instanceof Error && "code" in error && error.code === "ENOENT") return [];
        throw error;
      }
    })
    .map((target) => target.replace(/\[\d+\]|\d+/g, "N"))
    .filter((target) => target !== "/proc/N/fd")
    .sort();
}

/** What a process has open that it had not before. What has been closed since is nobody's leak. */
export function openedSince(before: readonly string[], pid: number | "self" = "self"): string[] {
  const left = [...before];
  return openDescriptors(pid).filter((target) => {
    const at = left.indexOf(target);
    if (at >= 0) left.splice(at, 1);
    return at < 0;
  });
}

/** Sets environment variables until it is disposed; undefined unsets. */
export function environment(variables: Record<string, string | undefined>): Disposable {
  const before = Object.keys(variables).map((name) => [name, process.env[name]] as const);
  for (const [name, value] of Object.entries(variables)) set(name, value);
  return {
    [Symbol.dispose]: () => {
      for (const [name, value] of before) set(name, value);
    },
  };
}

function set(name: string, value: string | undefined): void {
  if (value === undefined) delete process.env[name];
  else process.env[name] = value;
}

export interface TemporaryDirectory extends Disposable {
  path: string;
}

/** A directory that the user of the VMs can reach, and that goes with the test. */
export function temporaryDirectory(): TemporaryDirectory {
  const path = mkdtempSync(join(tmpdir(), "flurry-t-"));
  chmodSync(path, 0o755);
  return { path, [Symbol.dispose]: () => rmSync(path, { recursive: true, force: true }) };
}

/** Directories of a runtime that shares nothing with others on this machine, in the environment too. */
export function ownDirectories(): Disposable & { run: string; shm: string; home: string } {
  using stack = new DisposableStack();
  const run = stack.use(temporaryDirectory()).path;
  const home = stack.use(temporaryDirectory()).path;
  const shm = stack.adopt(mkdtempSync("/dev/shm/flurry-t-"), (dir) =>
    rmSync(dir, { recursive: true, force: true }),
  );
  chmodSync(shm, 0o755);
  stack.use(environment({ FLURRY_RUN: run, FLURRY_SHM: shm }));
  const owned = stack.move();
  return { run, shm, home, [Symbol.dispose]: () => owned.dispose() };
}

/** Whether this process may mount; only then can a small file system be had to fill up. */
export const canMount = isRoot() && spawnSync("unshare", ["--mount", "true"]).status === 0;

/** A tmpfs of its own, of this size. */
export function smallTmpfs(kibibytes: number): TemporaryDirectory {
  using stack = new DisposableStack();
  const { path } = stack.use(temporaryDirectory());
  mount(["-t", "tmpfs", "-o", `size=${kibibytes}k,mode=0755`, "flurry-test", path], "mount");
  stack.defer(() => mount([path], "umount"));
  const owned = stack.move();
  return { path, [Symbol.dispose]: () => owned.dispose() };
}

function mount(args: string[], command: "mount" | "umount"): void {
  const { status, stderr } = spawnSync(command, args, { encoding: "utf8" });
  if (status !== 0) throw new Error(`${command} ${args.join(" ")}: ${stderr}`);
}

/** Compiles a C program for the guest: static, as the guest has none of this machine's libraries. */
export async function guestProgram(source: string, directory: string): Promise<string> {
  mkdirSync(directory, { recursive: true });
  const path = join(directory, "program");
  await promisify(execFile)("musl-gcc", ["-std=c11", "-D_GNU_SOURCE", "-O2", "-static", "-o", path, source]);
  return path;
}

/** A TypeScript program in a process of its own, run by the runtime that runs this test. */
export class Script implements AsyncDisposable {
  readonly pid: number;
  /** How it ended. */
  readonly exited: Promise<{ code: number | null; signal: NodeJS.Signals | null; stderr: string }>;
  readonly #child: ChildProcessByStdio<null, Readable, Readable>;
  readonly #lines: AsyncIterator<string>;
  #stderr = "";

  constructor(path: string, args: readonly string[] = []) {
    const run = "deno" in process.versions ? ["run", "--allow-all", "--no-check"] : [];
    const child = spawn(process.execPath, [...run, path, ...args], { stdio: ["ignore", "pipe", "pipe"] });
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      this.#stderr += text;
    });
    this.pid = child.pid!;
    this.exited = new Promise((resolve) =>
      child.once("close", (code, signal) => resolve({ code, signal, stderr: this.#stderr })),
    );
    this.#child = child;
    this.#lines = linesOf(child.stdout)[Symbol.asyncIterator]();
  }

  /** What it has written to stderr so far. */
  get stderr(): string {
    return this.#stderr;
  }

  /** The next line that it prints; fails if it ends instead. */
  async line(): Promise<string> {
    const { value, done } = await this.#lines.next();
    if (!done) return value;
    const { code, signal, stderr } = await this.exited;
    throw new Error(`The script ended with ${signal ?? code}: ${stderr}`);
  }

  /** Waits for its end. With SIGKILL it has no chance to clean up. */
  async kill(signal: NodeJS.Signals = "SIGKILL"): Promise<void> {
    this.#child.kill(signal);
    // Lines that nobody reads would keep its end from being told.
    if (signal === "SIGKILL") this.#child.stdout.destroy();
    await this.exited;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.kill();
  }
}

/** SIGSTOP; returns when all threads of the process stand still. */
export async function stopProcess(pid: number): Promise<void> {
  process.kill(pid, "SIGSTOP");
  const running = () =>
    readdirSync(`/proc/${pid}/task`).filter(
      (thread) => !/^State:\s+[tT]/m.test(readFileSync(`/proc/${pid}/task/${thread}/status`, "utf8")),
    );
  while (running().length > 0) await new Promise((resolve) => setImmediate(resolve));
}

async function* linesOf(stream: NodeJS.ReadableStream): AsyncGenerator<string> {
  let partial = "";
  for await (const chunk of stream) {
    const lines = (partial + String(chunk)).split("\n");
    partial = lines.pop() ?? "";
    yield* lines;
  }
}
