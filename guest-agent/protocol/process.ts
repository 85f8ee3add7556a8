import type { Connection, Inheritance, MessageHandler } from "./connection.ts";
import { limits, streams } from "./constants.ts";
import { refusal, type WaitOptions, watchDeadline } from "./deadline.ts";
import { AgentError } from "./errors.ts";
import { InboundStream, OutboundStream } from "./flow.ts";
import type { GuestMessage } from "./messages.ts";
import { request } from "./request.ts";
import { signalName, signalNumber } from "./signals.ts";

export interface ExecOptions extends WaitOptions {
  /** The whole environment; PATH and HOME get a default if they are absent. */
  env?: Record<string, string> | undefined;
  /** @default "/" */
  cwd?: string | undefined;
  /** Whether the program gets a stdin that is written from here; else it reads /dev/null. */
  stdin?: boolean | undefined;
  uid?: number | undefined;
  gid?: number | undefined;
  /** Gives the program a fork hook on descriptor 3, named by FLURRY_FORK_FD (see PROTOCOL.md). */
  hook?: boolean | undefined;
}

/** How a program ended: its exit code, or the name of the signal that killed it. */
export type ExitStatus = { code: number; signal?: undefined } | { code?: undefined; signal: string };

/** A program that runs in the guest, leader of a process group of its own. */
export interface AgentProcess {
  readonly pid: number;
  /** Only with `stdin: true`. Closing it is the program's end of file; EPIPE if it reads no more. */
  readonly stdin: WritableStream<Uint8Array> | undefined;
  /** What is not read holds the program up. Cancelling closes the program's pipe. */
  readonly stdout: ReadableStream<Uint8Array>;
  readonly stderr: ReadableStream<Uint8Array>;
  /**
   * Resolves when the program has ended; its output may still be waiting. Rejects with AGENT_CLOSED,
   * ABORTED or AGENT_TIMEOUT (in both latter cases the process group was killed).
   */
  readonly exited: Promise<ExitStatus>;
  /** Signals the process group; false if the program had ended. @default "SIGTERM" */
  kill(signal?: string | number): Promise<boolean>;
}

/** Starts a program. Resolves once the guest's kernel runs it. */
export async function startProcess(
  connection: Connection,
  argv: readonly string[],
  options: ExecOptions = {},
): Promise<AgentProcess> {
  const operation = new ProcessOperation(connection, argv, options);
  const pid = await operation.started;
  return {
    pid,
    stdin: operation.stdin,
    stdout: operation.stdout.readable,
    stderr: operation.stderr.readable,
    exited: operation.exited,
    kill: (signal) => operation.kill(signal ?? "SIGTERM"),
  };
}

class ProcessOperation implements MessageHandler {
  readonly stdout: InboundStream;
  readonly stderr: InboundStream;
  readonly stdin: WritableStream<Uint8Array> | undefined;
  readonly started: Promise<number>;
  readonly exited: Promise<ExitStatus>;
  readonly #connection: Connection;
  readonly #id: number;
  readonly #name: string;
  readonly #input: OutboundStream | undefined;
  readonly #start = Promise.withResolvers<number>();
  readonly #exit = Promise.withResolvers<ExitStatus>();
  readonly #deadline: Disposable;
  readonly #openStreams = new Set<number>([streams.OUT, streams.ERR]);
  #hasExited = false;
  #failure: AgentError | undefined;

  constructor(connection: Connection, argv: readonly string[], options: ExecOptions) {
    this.#connection = connection;
    this.#name = `The program "${String(argv[0]).slice(0, 200)}"`;
    this.started = this.#start.promise;
    this.exited = this.#exit.promise;
    // Either may have nobody waiting; what failed is also seen in the streams.
    this.started.catch(() => undefined);
    this.exited.catch(() => undefined);
    this.#deadline = watchDeadline(this.#name, options, (error) => this.#abandon(error));
    this.#id = this.#open(argv, options);
    this.stdout = this.#inbound(streams.OUT);
    this.stderr = this.#inbound(streams.ERR);
    if (options.stdin) {
      this.#input = new OutboundStream({
        data: (chunk) => connection.sendData(this.#id, streams.IN, chunk),
        end: () => connection.send("END", this.#id, { s: streams.IN }),
      });
      this.stdin = writable(this.#input);
    }
  }

  async kill(signal: string | number): Promise<boolean> {
    const number = signalNumber(signal);
    if (number === undefined)
      throw new AgentError("BAD_ARGUMENT", `Cannot send the unknown signal "${signal}"`);
    if (this.#isDone()) return false;
    try {
      await request(this.#connection, "KILL", { target: this.#id, signal: number }, "OK", {});
      return true;
    } catch (error) {
      if (error instanceof AgentError && error.remote === "NO_SUCH_ID") return false;
      throw error;
    }
  }

  onMessage(message: GuestMessage): void {
    switch (message.type) {
      case "STARTED":
        this.#start.resolve(message.pid);
        return;
      case "DATA":
        this.#stream(message.stream).push(message.data);
        return;
      case "END":
        this.#openStreams.delete(message.stream);
        this.#stream(message.stream).end(this.#failure);
        this.#releaseIfDone();
        return;
      case "EXIT":
        this.#hasExited = true;
        this.#deadline[Symbol.dispose]();
        this.#exit.resolve(
          message.signal === undefined ? { code: message.code ?? 0 } : { signal: signalName(message.signal) },
        );
        this.#releaseIfDone();
        return;
      case "CREDIT":
        this.#input?.addCredit(message.bytes);
        return;
      case "CANCEL":
        this.#input?.fail(noReader(this.#name));
        return;
      case "ERROR":
        this.#connection.release(this.#id);
        this.#fail(refusal(this.#name, message));
        this.#openStreams.clear();
        this.#hasExited = true;
        return;
      default:
        throw new AgentError("AGENT_PROTOCOL", `The guest answered EXEC with ${message.type}`);
    }
  }

  inheritance(): Inheritance | undefined {
    if (this.#isDone()) return undefined;
    return { id: this.#id, name: this.#name, open: [...this.#openStreams], hasExited: this.#hasExited };
  }

  onClose(error: AgentError): void {
    this.#hasExited = true;
    this.#openStreams.clear();
    this.#fail(error);
  }

  #open(argv: readonly string[], options: ExecOptions): number {
    const env = Object.entries(options.env ?? {}).map(([name, value]) => `${name}=${value}`);
    try {
      checkArguments(argv, env);
      const id = this.#connection.open(this);
      try {
        this.#connection.send("EXEC", id, {
          argv: [...argv],
          env,
          ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
          ...(options.stdin ? { stdin: true } : {}),
          ...(options.hook ? { hook: true } : {}),
          ...(options.uid === undefined ? {} : { uid: options.uid }),
          ...(options.gid === undefined ? {} : { gid: options.gid }),
        });
      } catch (error) {
        this.#connection.release(id);
        throw error;
      }
      return id;
    } catch (error) {
      this.#deadline[Symbol.dispose]();
      throw error;
    }
  }

  #inbound(stream: typeof streams.OUT | typeof streams.ERR): InboundStream {
    return new InboundStream({
      credit: (bytes) => this.#connection.send("CREDIT", this.#id, { s: stream, n: bytes }),
      cancel: () => this.#connection.send("CANCEL", this.#id, { s: stream }),
    });
  }

  #stream(stream: number): InboundStream {
    if (stream === streams.OUT) return this.stdout;
    if (stream === streams.ERR) return this.stderr;
    throw new AgentError("AGENT_PROTOCOL", "The guest wrote to a program's stdin");
  }

  /** Nobody wants this program any more; its id stays taken until the guest has cleaned up. */
  #abandon(error: AgentError): void {
    this.#fail(error);
    this.kill("SIGKILL").catch(() => undefined); // only a lost channel, which has killed it too
    for (const stream of this.#openStreams) this.#connection.send("CANCEL", this.#id, { s: stream });
  }

  #fail(error: AgentError): void {
    this.#failure ??= error;
    this.#deadline[Symbol.dispose]();
    this.#start.reject(error);
    this.#exit.reject(error);
    this.stdout.end(error);
    this.stderr.end(error);
    this.#input?.fail(error);
  }

  #isDone(): boolean {
    return this.#hasExited && this.#openStreams.size === 0;
  }

  #releaseIfDone(): void {
    if (!this.#isDone()) return;
    this.#connection.release(this.#id);
    this.#input?.fail(noReader(this.#name));
  }
}

function noReader(name: string): AgentError {
  return new AgentError("AGENT_REFUSED", `${name} reads its stdin no more`, { errno: "EPIPE" });
}

function writable(input: OutboundStream): WritableStream<Uint8Array> {
  return new WritableStream<Uint8Array>({
    write: (chunk) => input.write(chunk),
    close: () => input.end(),
    abort: () => input.end(),
  });
}

function checkArguments(argv: readonly string[], env: readonly string[]): void {
  const problem =
    argv.length === 0
      ? "argv is empty"
      : argv.length > limits.ARGS_MAX || env.length > limits.ARGS_MAX
        ? `argv has ${argv.length} and env ${env.length} strings, at most ${limits.ARGS_MAX} each are allowed`
        : [...argv, ...env].some((text) => text.includes("\0"))
          ? "argv or env has a zero character"
          : undefined;
  if (problem) throw new AgentError("BAD_ARGUMENT", `Cannot start a program: ${problem}`);
}
