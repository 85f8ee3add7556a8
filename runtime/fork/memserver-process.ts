import { type ChildProcess, spawn } from "node:child_process";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { type ErrorCode, lookupCode } from "../../errors/codes.ts";
import { FlurryError } from "../../errors/errors.ts";
import {
  answerSchemas,
  type ControlAnswer,
  type ControlEvent,
  type ControlRequest,
  eventSchema,
  MAX_LINE_BYTES,
  replySchema,
} from "../../memserver/process/control.ts";
import { LineBuffer } from "../../qmp/mod.ts";
import { programArgv } from "../adapters/program.ts";
import type { Host } from "../vm/host.ts";
import { abortError, throwIfAborted } from "../vm/qemu-process.ts";
import { Tail } from "../vm/tail.ts";

const PROGRAM = fileURLToPath(new URL("../../memserver/main.ts", import.meta.url));
const STDERR_BYTES = 16 * 1024;
/** Milliseconds for a memserver to be there. */
const READY_DEADLINE_MS = 30_000;

export interface MemserverStart {
  host: Host;
  /** Directory with the keys of the installation. */
  keys: string;
  onEvent: (event: ControlEvent) => void;
  /** Milliseconds that it may be silent when it is asked something. It is asked every so often. */
  silenceMs: number;
}

export interface CallOptions {
  signal?: AbortSignal | undefined;
}

type Call<Op extends ControlRequest["op"]> = Omit<Extract<ControlRequest, { op: Op }>, "op">;

interface Pending {
  op: ControlRequest["op"];
  resolve: (answer: Record<string, unknown>) => void;
  reject: (error: FlurryError) => void;
}

/** One memserver process: started, spoken to, watched that it answers, and ended when disposed. */
export class MemserverProcess implements AsyncDisposable {
  readonly pid: number;
  /** Resolves with what ended it. */
  readonly exited: Promise<FlurryError>;
  readonly #child: ChildProcess;
  readonly #stderr: Tail;
  readonly #onEvent: (event: ControlEvent) => void;
  readonly #silenceMs: number;
  readonly #lines = new LineBuffer(MAX_LINE_BYTES);
  readonly #pending = new Map<number, Pending>();
  readonly #ready = Promise.withResolvers<void>();
  #nextId = 1;
  #death: FlurryError | undefined;
  #complaint: string | undefined;
  #watch: ReturnType<typeof setTimeout> | undefined;

  private constructor({ host, keys, onEvent, silenceMs }: MemserverStart) {
    const args = ["--run", join(host.owner.run, "memserver"), "--keys", keys];
    const [program, ...rest] = programArgv(PROGRAM, args);
    this.#child = spawn(program!, rest, { stdio: ["pipe", "pipe", "pipe"], cwd: "/" });
    this.#onEvent = onEvent;
    this.#silenceMs = silenceMs;
    this.pid = this.#child.pid ?? -1;
    this.#stderr = new Tail(this.#child.stderr!, STDERR_BYTES);
    this.#child.stdout!.on("data", (chunk: Uint8Array) => this.#read(chunk));
    // Its end has an event of its own.
    this.#child.stdin!.on("error", () => undefined);
    this.exited = new Promise((resolve) => {
      const end = (how: string) => resolve(this.#ended(how));
      this.#child.once("exit", (code, signal) =>
        end(signal ? `was killed by ${signal}` : `exited with status ${code}`),
      );
      this.#child.once("error", (error) => end(`did not start: ${error.message}`));
    });
  }

  /**
   * Starts a memserver and waits until it is there.
   *
   * @throws FlurryError MEMSERVER_FAILED, ABORTED
   */
  static async start(options: MemserverStart, signal?: AbortSignal): Promise<MemserverProcess> {
    throwIfAborted(signal);
    const memserver = new MemserverProcess(options);
    const late = AbortSignal.timeout(READY_DEADLINE_MS);
    const given = Promise.withResolvers<never>();
    const giveUp = () =>
      given.reject(
        signal?.aborted
          ? abortError(signal)
          : new FlurryError("MEMSERVER_FAILED", "The memserver does not start"),
      );
    late.addEventListener("abort", giveUp);
    signal?.addEventListener("abort", giveUp);
    try {
      const died = memserver.exited.then((death) => Promise.reject(death));
      await Promise.race([memserver.#ready.promise, died, given.promise]);
      memserver.#ask();
      return memserver;
    } catch (error) {
      await memserver[Symbol.asyncDispose]();
      throw error;
    } finally {
      late.removeEventListener("abort", giveUp);
      signal?.removeEventListener("abort", giveUp);
    }
  }

  /**
   * Has it do something.
   *
   * @throws FlurryError what it answers; MEMSERVER_FAILED when it ends before it has answered, ABORTED
   */
  async call<Op extends ControlRequest["op"]>(
    op: Op,
    request: Call<Op>,
    { signal }: CallOptions = {},
  ): Promise<ControlAnswer<Op>> {
    throwIfAborted(signal);
    if (this.#death) throw this.#death;
    const id = this.#nextId++;
    const { promise, resolve, reject } = Promise.withResolvers<Record<string, unknown>>();
    this.#pending.set(id, { op, resolve, reject });
    const onAbort = () => reject(abortError(signal));
    signal?.addEventListener("abort", onAbort, { once: true });
    try {
      this.#child.stdin!.write(`${JSON.stringify({ id, op, ...request })}\n`);
      return (await promise) as ControlAnswer<Op>;
    } finally {
      this.#pending.delete(id);
      signal?.removeEventListener("abort", onAbort);
    }
  }

  /** Ends it. Children that need it are paused, or die. */
  async [Symbol.asyncDispose](): Promise<void> {
    clearTimeout(this.#watch);
    if (!this.#death) this.#child.kill("SIGKILL");
    await this.exited;
    this.#child.stdout?.destroy();
    this.#child.stderr?.destroy();
  }

  #read(chunk: Uint8Array): void {
    try {
      this.#lines.push(chunk);
      for (let line = this.#lines.next(); line !== undefined; line = this.#lines.next()) this.#line(line);
    } catch (error) {
      // Nothing that it says from now on can be relied on.
      this.#complaint = `said what nobody understands: ${error instanceof Error ? error.message : String(error)}`;
      this.#child.kill("SIGKILL");
    }
  }

  #line(line: string): void {
    const value: unknown = JSON.parse(line);
    if (typeof value === "object" && value !== null && "event" in value) {
      const event = eventSchema.parse(value);
      if (event.event === "ready") this.#ready.resolve();
      else this.#onEvent(event);
      return;
    }
    const reply = replySchema.parse(value);
    const pending = this.#pending.get(reply.id);
    // Whoever asked has given up.
    if (!pending) return;
    if ("error" in reply) pending.reject(errorOf(reply.error));
    else pending.resolve(answerSchemas[pending.op].parse(reply.answer));
  }

  /** Asks it for a sign of life, and again: one that hangs is killed, since another one can do its work. */
  #ask(): void {
    const kill = () => {
      this.#complaint = `has not answered for ${this.#silenceMs} ms`;
      this.#child.kill("SIGKILL");
    };
    const half = this.#silenceMs / 2;
    // In two steps: after a stall of this process the answer that lies there is heard before the second one.
    this.#watch = setTimeout(() => {
      this.#watch = setTimeout(kill, half);
    }, half);
    void this.call("ping", {}).then(
      () => {
        clearTimeout(this.#watch);
        if (!this.#death) this.#watch = setTimeout(() => this.#ask(), this.#silenceMs / 3);
      },
      () => clearTimeout(this.#watch),
    );
  }

  #ended(how: string): FlurryError {
    clearTimeout(this.#watch);
    const why = this.#complaint ? `${this.#complaint}, and ${how}` : how;
    const stderr = this.#stderr.text();
    const death = new FlurryError(
      "MEMSERVER_FAILED",
      `The memserver (pid ${this.pid}) ${why}${stderr ? `: ${stderr}` : ""}`,
    );
    this.#death = death;
    for (const { reject } of this.#pending.values()) reject(death);
    return death;
  }
}

function errorOf({ code, message }: { code: string; message: string }): FlurryError {
  const known = lookupCode(code) ? (code as ErrorCode) : "MEMSERVER_FAILED";
  return new FlurryError(known, message);
}
