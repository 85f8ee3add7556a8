import { type ChildProcess, spawn } from "node:child_process";
import { chownSync, mkdirSync, rmSync } from "node:fs";
import type { Socket } from "node:net";
import { FlurryError } from "../../errors/errors.ts";
import { QmpClient } from "../../qmp/mod.ts";
import { confined } from "./confine.ts";
import type { Host } from "./host.ts";
import { SocketListener } from "./socket-listener.ts";
import { Tail } from "./tail.ts";

/** Milliseconds from spawn to the first QMP answer, on a machine that is very busy. */
const READY_DEADLINE_MS = 60_000;
const STDERR_BYTES = 16 * 1024;
const CONSOLE_BYTES = 64 * 1024;

export interface ExitInfo {
  code: number | null;
  signal: NodeJS.Signals | null;
}

export interface QemuStart {
  host: Host;
  /** The VM's directory, from `host.owner.vmDir()`. It is made, and removed with the VM. */
  dir: string;
  /** QEMU's arguments, from `commandLine()`. */
  args: readonly string[];
  /** Whether the machine has a port for the worker-host. @default false */
  workerPort?: boolean | undefined;
  /** Receives each line that the guest writes to its serial console. */
  onConsoleLine?: ((line: string) => void) | undefined;
  /** @default 60000 */
  timeoutMs?: number | undefined;
  signal?: AbortSignal | undefined;
}

/**
 * One QEMU process: spawned confined, ready when QMP has answered, its death noticed at once, its
 * stderr in every error, reaped with everything of its directory when disposed.
 */
export class QemuProcess implements AsyncDisposable {
  readonly pid: number;
  readonly dir: string;
  readonly qmp: QmpClient;
  /** The host's end of the agent's virtio-serial port; paused until somebody reads it. */
  readonly agentSocket: Socket;
  /** Likewise of the worker-host's port, if the machine has one. */
  readonly workerSocket: Socket | undefined;
  /** Resolves when the process is gone, whatever the reason. */
  readonly exited: Promise<ExitInfo>;
  /** Resolves when, beyond that, all that it wrote has been read: `stderr` and `consoleTail` are complete. */
  readonly silent: Promise<void>;
  readonly #process: ProcessHandle;

  private constructor(
    handle: ProcessHandle,
    dir: string,
    qmp: QmpClient,
    agentSocket: Socket,
    workerSocket: Socket | undefined,
  ) {
    this.#process = handle;
    this.pid = handle.pid;
    this.dir = dir;
    this.qmp = qmp;
    this.agentSocket = agentSocket;
    this.workerSocket = workerSocket;
    this.exited = handle.exited;
    this.silent = handle.silent;
  }

  /**
   * Starts QEMU and waits until it answers.
   *
   * @throws FlurryError QEMU_START_FAILED (with QEMU's stderr), NO_SPACE, ABORTED
   */
  static async start(options: QemuStart): Promise<QemuProcess> {
    const { host, dir } = options;
    throwIfAborted(options.signal);
    makeVmDir(host, dir);
    await using stack = new AsyncDisposableStack();
    stack.defer(() => rmSync(dir, { recursive: true, force: true }));
    const monitor = stack.use(await SocketListener.open(`${dir}/q`));
    const agent = stack.use(await SocketListener.open(`${dir}/a`));
    const worker = options.workerPort ? stack.use(await SocketListener.open(`${dir}/w`)) : undefined;
    const handle = stack.use(new ProcessHandle(options));
    const limit = readyLimit(options, handle);
    try {
      const [qmpSocket, agentSocket, workerSocket] = await Promise.race([
        Promise.all([monitor.connection, agent.connection, worker?.connection]),
        limit.failed,
      ]);
      const connecting = QmpClient.connect(qmpSocket, { stderr: () => handle.stderr() });
      const qmp = await Promise.race([connecting, limit.failed]);
      stack.use(qmp);
      const vm = new QemuProcess(handle, dir, qmp, agentSocket, workerSocket);
      vm.#resources = stack.move();
      return vm;
    } catch (error) {
      throw await handle.startError(error);
    } finally {
      limit.release();
    }
  }

  #resources: AsyncDisposableStack | undefined;

  stderr(): string {
    return this.#process.stderr();
  }

  /** The last 64 KiB that the guest wrote to its serial console. */
  consoleTail(): string {
    return this.#process.consoleTail();
  }

  /** Why this process is gone, as an error that names it and quotes its stderr. */
  exitError(info: ExitInfo): FlurryError {
    return this.#process.exitError(info);
  }

  /** Kills the process, waits for its end and removes its directory. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#resources?.disposeAsync();
    this.#resources = undefined;
  }
}

/** The operating system's side of it: spawn, output, end. */
class ProcessHandle implements AsyncDisposable {
  readonly pid: number;
  readonly exited: Promise<ExitInfo>;
  readonly silent: Promise<void>;
  readonly #child: ChildProcess;
  readonly #stderr: Tail;
  readonly #console: Tail;
  #spawnError: Error | undefined;
  #exit: ExitInfo | undefined;

  constructor({ host, args, onConsoleLine }: QemuStart) {
    const [command, ...rest] = confined([host.qemu.path, ...args], host.user);
    this.#child = spawn(command!, rest, {
      stdio: ["ignore", "pipe", "pipe"],
      cwd: "/",
      env: { PATH: process.env.PATH },
    });
    this.pid = this.#child.pid ?? -1;
    this.#console = new Tail(this.#child.stdout!, CONSOLE_BYTES, onConsoleLine);
    this.#stderr = new Tail(this.#child.stderr!, STDERR_BYTES);
    this.silent = new Promise((resolve) => this.#child.once("close", () => resolve()));
    this.exited = new Promise((resolve) => {
      const end = (info: ExitInfo) => {
        this.#exit ??= info;
        resolve(this.#exit);
      };
      this.#child.once("exit", (code, signal) => end({ code, signal }));
      this.#child.once("error", (error) => {
        this.#spawnError = error;
        end({ code: null, signal: null });
      });
    });
  }

  stderr(): string {
    return this.#stderr.text();
  }

  consoleTail(): string {
    return this.#console.text();
  }

  exitError(info: ExitInfo): FlurryError {
    const how = info.signal ? `was killed by ${info.signal}` : `exited with status ${info.code}`;
    const stderr = this.stderr();
    if (info.signal === "SIGBUS") {
      return new FlurryError(
        "NO_SPACE",
        `QEMU (pid ${this.pid}) ${how}: the tmpfs that holds its memory is full`,
      );
    }
    return new FlurryError("QEMU_EXITED", `QEMU (pid ${this.pid}) ${how}${stderr ? `: ${stderr}` : ""}`);
  }

  /** The most telling error of a start that failed: a dead process explains more than a lost socket. */
  async startError(error: unknown): Promise<unknown> {
    if (error instanceof FlurryError && error.code !== "QEMU_EXITED") return error;
    const info = this.#exit ?? (await Promise.race([this.exited, delay(1000)]));
    if (this.#spawnError) {
      return new FlurryError("QEMU_START_FAILED", `Cannot start QEMU: ${this.#spawnError.message}`, {
        cause: error,
      });
    }
    const death = info && this.exitError(info);
    if (death?.code === "NO_SPACE") return death;
    const reason = death ? death.message : error instanceof Error ? error.message : String(error);
    return new FlurryError("QEMU_START_FAILED", `Cannot start a VM: ${reason}`, { cause: error });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (!this.#exit) this.#child.kill("SIGKILL");
    await this.exited;
    this.#child.stdout?.destroy();
    this.#child.stderr?.destroy();
  }
}

function makeVmDir(host: Host, dir: string): void {
  mkdirSync(dir, { recursive: true, mode: 0o700 });
  if (host.user) chownSync(dir, host.user.uid, host.user.gid);
}

/** Fails at the process's end, at the deadline and at an abort, whichever is first. */
function readyLimit(options: QemuStart, handle: ProcessHandle): { failed: Promise<never>; release(): void } {
  const { signal, timeoutMs = READY_DEADLINE_MS } = options;
  const { promise, reject } = Promise.withResolvers<never>();
  // Nobody may be listening any more when a started process ends later on.
  promise.catch(() => undefined);
  const onAbort = () => reject(abortError(signal));
  const timer = setTimeout(
    () =>
      reject(
        new FlurryError("QEMU_START_FAILED", `QEMU (pid ${handle.pid}) is not ready after ${timeoutMs} ms`),
      ),
    timeoutMs,
  );
  signal?.addEventListener("abort", onAbort, { once: true });
  // The signal may have fired while the sockets were made.
  if (signal?.aborted) onAbort();
  handle.exited.then((info) => reject(handle.exitError(info)));
  return {
    failed: promise,
    release() {
      clearTimeout(timer);
      signal?.removeEventListener("abort", onAbort);
    },
  };
}

export function abortError(signal: AbortSignal | undefined): FlurryError {
  return new FlurryError("ABORTED", "Aborted by the caller", { cause: signal?.reason });
}

export function throwIfAborted(signal: AbortSignal | undefined): void {
  if (signal?.aborted) throw abortError(signal);
}

function delay(ms: number): Promise<undefined> {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms, undefined);
    timer.unref?.();
  });
}
