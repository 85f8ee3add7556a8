import type { Socket } from "node:net";
import { GuestCall } from "./call.ts";
import { Connection, type Inheritance } from "./connection.ts";
import { PROTOCOL_VERSION } from "./constants.ts";
import type { WaitOptions } from "./deadline.ts";
import { AgentError } from "./errors.ts";
import { type AgentFile, type FileSource, listFiles, openFile, type PutOptions, putFile } from "./files.ts";
import { type GuestIdentity, type IdentityReceipt, identityFields } from "./identity.ts";
import { InheritedProcess } from "./inherited.ts";
import type { AgentEntry, GuestMessage, HelloInfo } from "./messages.ts";
import { type AgentProcess, type ExecOptions, startProcess } from "./process.ts";
import { type Answer, type RequestType, request } from "./request.ts";
import { type RunOptions, type RunResult, runProcess } from "./run.ts";

export interface AgentClientOptions {
  /** Whose agent this is, for error messages. @default "the VM" */
  name?: string | undefined;
  /** What the VM's process said last; put into AGENT_CLOSED errors. */
  stderr?: (() => string) | undefined;
  /** For requests with one answer that name no `timeoutMs` of their own. @default 30000 */
  requestTimeoutMs?: number | undefined;
}

/**
 * The host's end of one VM's agent channel. Every method rejects with an `AgentError`; when the
 * channel dies, everything that waits rejects with AGENT_CLOSED.
 */
export class AgentClient implements AsyncDisposable {
  readonly #connection: Connection;
  readonly #requestTimeoutMs: number;

  private constructor(connection: Connection, requestTimeoutMs: number) {
    this.#connection = connection;
    this.#requestTimeoutMs = requestTimeoutMs;
  }

  /**
   * Speaks over `socket`, which belongs to the client from now on. Nothing is sent before the first
   * request, and requests may be sent before the VM runs: they wait in the socket.
   */
  static over(socket: Socket, options: AgentClientOptions = {}): AgentClient {
    const { name = "the VM", stderr, requestTimeoutMs = 30_000 } = options;
    return new AgentClient(new Connection(socket, { name, stderr }), requestTimeoutMs);
  }

  /** Resolves with the reason once the channel is gone; never rejects. */
  get closed(): Promise<AgentError> {
    return this.#connection.closed;
  }

  /** Whether the channel is there. */
  get isOpen(): boolean {
    return this.#connection.reason === undefined;
  }

  /** Asks the agent who it is; the way to wait for a VM to have booted. */
  async hello(options: WaitOptions = {}): Promise<HelloInfo> {
    const { type: _type, id: _id, ...info } = await this.#request("HELLO", undefined, "HELLO", options);
    if (info.protocol === PROTOCOL_VERSION) return info;
    const versions = `it speaks version ${info.protocol}, this is version ${PROTOCOL_VERSION}`;
    throw new AgentError("AGENT_PROTOCOL", `Cannot talk to the guest's agent: ${versions}`);
  }

  /** The shortest round trip there is. */
  async ping(options: WaitOptions = {}): Promise<void> {
    await this.#request("PING", undefined, "PONG", options);
  }

  /**
   * Gives the guest its identity; resolves with the one that it has then, read back from its kernel.
   * A guest that was quiesced stands still until `release()`.
   */
  async identify(identity: GuestIdentity, options: WaitOptions = {}): Promise<IdentityReceipt> {
    const fields = identityFields(identity);
    const {
      type: _type,
      id: _id,
      ...receipt
    } = await this.#request("IDENTIFY", fields, "IDENTIFIED", options);
    return receipt;
  }

  /**
   * Lets the processes of a quiesced guest go on; it has no answer. Whatever is sent after it finds
   * them running; what was sent since `quiesce` is sent then. @param options.realtimeNs - sets CLOCK_REALTIME once more, which is behind by what
   * the fork took; nanoseconds since 1970
   */
  release(options: { realtimeNs?: bigint | undefined } = {}): void {
    const { realtimeNs } = options;
    this.#connection.unhold("RELEASE", realtimeNs === undefined ? undefined : { realtimeNs });
  }

  /** Starts a program; resolves once it runs. `signal` and `timeoutMs` kill it, whenever they fire. */
  exec(argv: readonly string[], options: ExecOptions = {}): Promise<AgentProcess> {
    return startProcess(this.#connection, argv, options);
  }

  /** Runs a program to its end and collects what it writes, up to a bound. */
  run(argv: readonly string[], options: RunOptions = {}): Promise<RunResult> {
    return runProcess(this.#connection, argv, options);
  }

  /** Writes a file into the guest, with the directories above it; resolves with its size in bytes. */
  putFile(path: string, source: FileSource, options: PutOptions = {}): Promise<{ size: number }> {
    return putFile(this.#connection, path, source, options);
  }

  /** Opens a file of the guest: size, mode and a stream of its bytes. */
  openFile(path: string, options: WaitOptions = {}): Promise<AgentFile> {
    return openFile(this.#connection, path, options);
  }

  /** The bytes of a file of the guest. It is opened by the first read, which sees what goes wrong. */
  getFile(path: string, options: WaitOptions = {}): ReadableStream<Uint8Array> {
    let reader: ReadableStreamDefaultReader<Uint8Array> | undefined;
    const source: UnderlyingDefaultSource<Uint8Array> = {
      pull: async (controller) => {
        reader ??= (await this.openFile(path, options)).body.getReader();
        const { done, value } = await reader.read();
        if (done) controller.close();
        else controller.enqueue(value);
      },
      cancel: (reason) => reader?.cancel(reason),
    };
    return new ReadableStream(source, { highWaterMark: 0 });
  }

  /** Everything below a directory, sorted by path. @param options.maxEntries default 100000 */
  list(path: string, options: WaitOptions & { maxEntries?: number } = {}): Promise<AgentEntry[]> {
    return listFiles(this.#connection, path, { ...options, maxEntries: options.maxEntries ?? 100_000 });
  }

  /**
   * Brings the guest to rest before the VM is frozen: once this resolves, no process of it runs until
   * `release()`, and nothing is under way on the channel. Refused while programs or transfers run, and
   * when a process does not come to rest. Resolves with the number of processes that have a fork hook.
   *
   * @param options.live - programs and transfers may run, and go on at `release()`. What is sent before is held
   * back until then; what they had written before has arrived when this resolves.
   */
  async quiesce(options: WaitOptions & { live?: boolean } = {}): Promise<{ hooks: number }> {
    if (options.live) return await this.#quiesceLive(options);
    const { pending } = this.#connection;
    if (pending > 0) {
      throw new AgentError("AGENT_REFUSED", `Cannot quiesce: ${pending} operations are running`, {
        remote: "BUSY",
      });
    }
    const { hooks } = await this.#request("QUIESCE", undefined, "QUIESCED", options);
    return { hooks };
  }

  /**
   * Ends the guest's processes (SIGTERM, then SIGKILL after `graceMs`) and powers it off. Resolves
   * when the agent has begun; the end of the VM is its process's end.
   */
  async shutdown(options: WaitOptions & { graceMs?: number } = {}): Promise<void> {
    const fields = options.graceMs === undefined ? undefined : { graceMs: options.graceMs };
    await this.#request("SHUTDOWN", fields, "STOPPING", options);
  }

  /**
   * Hears of programs in the guest that ask something of the host; without it they are refused. In a fork it
   * hears again, after `release()`, of those that were open.
   */
  onCall(listener: (call: GuestCall) => void): void {
    this.#connection.onCall((message) => listener(new GuestCall(this.#connection, message)));
  }

  /** The programs that run, for `inherit` of a fork's client. */
  inheritances(): Inheritance[] {
    return this.#connection.inheritances();
  }

  /** Takes over a program that goes on in this fork of its guest; before `release()`. */
  inherit(inheritance: Inheritance): InheritedProcess {
    return new InheritedProcess(this.#connection, inheritance);
  }

  /** Closes the channel; whatever still runs over it rejects with AGENT_CLOSED. */
  close(): void {
    this.#connection.destroy(new AgentError("AGENT_CLOSED", "The channel was closed by this side"));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.close();
    await this.closed;
  }

  async #quiesceLive(options: WaitOptions): Promise<{ hooks: number }> {
    const quiesced = this.#request("QUIESCE", { live: true }, "QUIESCED", options);
    this.#connection.hold();
    try {
      const { hooks } = await quiesced;
      return { hooks };
    } catch (error) {
      // One that was not waited for to its end may come to rest yet: it has to be told to go on.
      if (error instanceof AgentError && error.code === "AGENT_REFUSED") this.#connection.unhold();
      else if (!this.#connection.reason) this.#connection.unhold("RELEASE");
      throw error;
    }
  }

  #request<T extends GuestMessage["type"]>(
    type: RequestType,
    fields: Record<string, unknown> | undefined,
    expected: T,
    options: WaitOptions,
  ): Promise<Answer<T>> {
    return request(this.#connection, type, fields, expected, {
      timeoutMs: this.#requestTimeoutMs,
      ...options,
    });
  }
}
