import { setImmediate } from "node:timers";
import { QmpError } from "./errors.ts";
import { EventHub } from "./event-hub.ts";
import { LineBuffer } from "./line-buffer.ts";
import { parseLine, type QmpGreeting, type QmpMessage } from "./messages.ts";
import type { QmpTransport } from "./transport.ts";
import { limitWait, type WaitOptions } from "./wait-limit.ts";

const STDERR_TAIL_CHARS = 2048;

export interface ConnectionSettings {
  timeoutMs: number;
  maxLineBytes: number;
  stderr: (() => string) | undefined;
  /** The id of the first command. QEMU reads its monitor byte by byte, so short ids save time. */
  firstId: number;
}

interface Pending {
  what: string;
  command: string;
  resolve(value: unknown): void;
  reject(error: QmpError): void;
}

interface Loss {
  code: "QMP_CLOSED" | "QMP_PROTOCOL";
  reason: string;
  cause: unknown;
  /** True when we closed the connection ourselves. */
  ours: boolean;
}

/** One monitor connection: handshake, commands by id, events, and the end of it all. */
export class QmpConnection {
  readonly events = new EventHub();
  readonly closed: Promise<QmpError>;
  readonly timeoutMs: number;

  readonly #transport: QmpTransport;
  readonly #stderr: (() => string) | undefined;
  readonly #lines: LineBuffer;
  readonly #pending = new Map<number, Pending>();
  readonly #resolveClosed: (reason: QmpError) => void;
  readonly #ready = Promise.withResolvers<void>();
  #greeting: QmpGreeting | undefined;
  #lastId: number;
  #holding = false;
  #loss: Loss | undefined;

  constructor(transport: QmpTransport, settings: ConnectionSettings) {
    this.#transport = transport;
    this.timeoutMs = settings.timeoutMs;
    this.#stderr = settings.stderr;
    this.#lines = new LineBuffer(settings.maxLineBytes);
    this.#lastId = settings.firstId - 1;
    const closed = Promise.withResolvers<QmpError>();
    this.closed = closed.promise;
    this.#resolveClosed = closed.resolve;
  }

  /** Takes the greeting and leaves negotiation mode. Closes the connection when that fails. */
  async open(signal: AbortSignal | undefined): Promise<QmpGreeting> {
    if (signal?.aborted) {
      this.#transport.close();
      throw new QmpError("ABORTED", "QMP handshake was aborted", { cause: signal.reason });
    }
    const release = limitWait(this.timeoutMs, signal, (why) => {
      this.#ready.reject(
        why === "timeout"
          ? new QmpError(
              "QMP_TIMEOUT",
              this.#withStderr(`QMP handshake took longer than ${this.timeoutMs} ms`),
            )
          : new QmpError("ABORTED", "QMP handshake was aborted", { cause: signal?.reason }),
      );
    });
    this.#transport.start({
      data: (chunk) => {
        this.#lines.push(chunk);
        if (!this.#holding) this.#drain();
      },
      // One turn later, so that the last words on QEMU's stderr, which the same poll may have found,
      // are there for the message; and behind what is held for the first subscribers.
      closed: (error) =>
        void setImmediate(() => {
          const reason = `QEMU closed the connection${error === undefined ? "" : ` (${error.message})`}`;
          this.#lose({ code: "QMP_CLOSED", reason, cause: error, ours: false });
        }),
    });
    try {
      await this.#ready.promise;
    } catch (error) {
      this.close();
      throw error;
    } finally {
      release();
    }
    return this.#greeting!;
  }

  /** Sends one command; rejects with a QmpError. The caller has checked the time limit. */
  call(
    verb: "execute" | "exec-oob",
    command: string,
    args: object | undefined,
    timeoutMs: number,
    signal: WaitOptions["signal"],
  ): Promise<unknown> {
    return new Promise((resolve, reject) => {
      const what = `QMP command "${command}"`;
      if (this.#loss !== undefined) {
        reject(this.#lossError(this.#loss, what, command, "QMP_CLOSED"));
        return;
      }
      if (signal?.aborted) {
        reject(new QmpError("ABORTED", `${what} was aborted`, { command, cause: signal.reason }));
        return;
      }
      const id = ++this.#lastId;
      const text = encode(verb, command, args, id);
      const release = limitWait(timeoutMs, signal, (why) => {
        this.#pending.delete(id);
        reject(
          why === "timeout"
            ? new QmpError("QMP_TIMEOUT", `${what} took longer than ${timeoutMs} ms`, { command })
            : new QmpError("ABORTED", `${what} was aborted`, { command, cause: signal?.reason }),
        );
      });
      this.#pending.set(id, {
        what,
        command,
        resolve: (value) => {
          release();
          resolve(value);
        },
        reject: (error) => {
          release();
          reject(error);
        },
      });
      this.#transport.write(text);
    });
  }

  close(): void {
    this.#lose({
      code: "QMP_CLOSED",
      reason: "this client closed the connection",
      cause: undefined,
      ours: true,
    });
  }

  #drain(): void {
    try {
      while (this.#loss === undefined && !this.#holding) {
        const line = this.#lines.next();
        if (line === undefined) return;
        for (const message of parseLine(line)) this.#take(message);
      }
    } catch (error) {
      const reason = error instanceof Error ? error.message : String(error);
      this.#lose({
        code: "QMP_PROTOCOL",
        reason: `QEMU broke the protocol: ${reason}`,
        cause: error,
        ours: false,
      });
    }
  }

  #take(message: QmpMessage): void {
    if (message.kind === "greeting") {
      if (this.#greeting !== undefined) throw new SyntaxError("Second greeting");
      this.#greeting = message.greeting;
      this.#negotiate(message.greeting);
      return;
    }
    if (this.#greeting === undefined) throw new SyntaxError(`Got "${message.kind}" before the greeting`);
    if (message.kind === "event") {
      this.events.emit(message.event);
      return;
    }
    if (message.id === undefined) {
      // Which command it is about cannot be known, so none of them may be trusted to be answered.
      const said = message.kind === "error" ? `: ${message.description}` : "";
      throw new SyntaxError(`Reply without id${said}`);
    }
    const id = message.id as number;
    const pending = this.#pending.get(id);
    // Nobody waits any more: the command timed out, was aborted, or is a former client's.
    if (pending === undefined) return;
    this.#pending.delete(id);
    if (message.kind === "return") {
      pending.resolve(message.value);
    } else {
      const { command, what } = pending;
      const { qmpClass, description } = message;
      pending.reject(
        new QmpError("QMP_COMMAND_FAILED", `${what} failed: ${description}`, { command, qmpClass }),
      );
    }
  }

  #negotiate(greeting: QmpGreeting): void {
    const args = greeting.capabilities.includes("oob") ? { enable: ["oob"] } : undefined;
    const id = ++this.#lastId;
    this.#pending.set(id, {
      what: "QMP handshake",
      command: "qmp_capabilities",
      resolve: () => {
        // Events right behind this answer wait for a turn of the event loop, until whoever awaits
        // open() has had the chance to subscribe.
        this.#holding = true;
        setImmediate(() => {
          this.#holding = false;
          this.#drain();
        });
        this.#ready.resolve();
      },
      reject: this.#ready.reject,
    });
    this.#transport.write(encode("execute", "qmp_capabilities", args, id));
  }

  #lose(loss: Loss): void {
    if (this.#loss !== undefined) return;
    this.#loss = loss;
    this.#transport.close();
    const pending = [...this.#pending.values()];
    this.#pending.clear();
    for (const one of pending) one.reject(this.#lossError(loss, one.what, one.command, loss.code));
    this.#ready.reject(this.#lossError(loss, "QMP handshake", undefined, loss.code));
    this.#ready.promise.catch(() => undefined);
    this.events.lose(
      (what) => this.#lossError(loss, what, undefined, loss.code),
      (what) => this.#lossError(loss, what, undefined, "QMP_CLOSED"),
      loss.ours,
    );
    this.#resolveClosed(this.#lossError(loss, "QMP connection", undefined, loss.code));
  }

  #lossError(loss: Loss, what: string, command: string | undefined, code: Loss["code"]): QmpError {
    const message = `${what} failed: ${loss.reason}`;
    return new QmpError(code, loss.ours ? message : this.#withStderr(message), {
      command,
      cause: loss.cause,
    });
  }

  #withStderr(message: string): string {
    if (this.#stderr === undefined) return message;
    let text: string;
    try {
      text = this.#stderr().trim();
    } catch (error) {
      return `${message}; its stderr cannot be read: ${error instanceof Error ? error.message : String(error)}`;
    }
    return text === "" ? message : `${message}; its stderr ends with: ${text.slice(-STDERR_TAIL_CHARS)}`;
  }
}

/** @throws TypeError when the arguments are no JSON. */
function encode(verb: "execute" | "exec-oob", command: string, args: object | undefined, id: number): string {
  return `${JSON.stringify({ [verb]: command, arguments: args, id })}\n`;
}
