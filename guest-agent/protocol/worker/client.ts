import type { Socket } from "node:net";
import { streams } from "../constants.ts";
import type { WaitOptions } from "../deadline.ts";
import { ask } from "./ask.ts";
import { checkRequest, checkVariables, jsonBytes } from "./checks.ts";
import type {
  WarmedRequest,
  WarmInfo,
  WorkerClientOptions,
  WorkerFetchOptions,
  WorkerRequest,
  WorkerResponse,
} from "./client-types.ts";
import { type LostError, WorkerConnection } from "./connection.ts";
import { WORKER_PROTOCOL_VERSION, type WorkerType, workerLimits } from "./constants.ts";
import { WorkerError } from "./errors.ts";
import { Exchange, type ExchangeStart } from "./exchange.ts";
import type { DoneInfo, GuestMessage, LoadedInfo, WorkerHostInfo } from "./guest-messages.ts";
import type { ForkInfo } from "./host-messages.ts";
import { OutboundIntake } from "./outbound-intake.ts";
import { RecordIntake } from "./record-intake.ts";

/**
 * The host's end of one worker's channel; README.md says what travels over it. Every method rejects
 * with a `WorkerError`; when the channel dies, everything that waits rejects with AGENT_CLOSED.
 */
export class WorkerClient implements AsyncDisposable {
  readonly #connection: WorkerConnection;
  readonly #options: WorkerClientOptions;
  readonly #intake: RecordIntake;
  readonly #outbound: OutboundIntake;
  #exchanges = 0;
  #requestCount = 0;

  private constructor(socket: Socket, options: WorkerClientOptions) {
    const { name = "the VM", stderr } = options;
    this.#options = options;
    this.#intake = new RecordIntake(options.logBytesPerSecond ?? 1 << 20, (bytes) =>
      this.#connection.send("CREDIT", 0, { s: 2, n: bytes }),
    );
    this.#outbound = new OutboundIntake(options.outbound, {
      send: (type, id, fields) => this.#connection.send(type, id, fields),
      sendData: (id, chunk) => this.#connection.sendData(id, streams.IN, chunk),
    });
    this.#connection = new WorkerConnection(socket, {
      name,
      stderr,
      onRecord: (message) => this.#onRecord(message),
      outbound: this.#outbound,
    });
    // Without this the timer of a dead channel would speak into it.
    this.#connection.closed.then(() => this.#intake.pause());
  }

  /**
   * Speaks over `socket`, which belongs to the client from now on. Nothing is sent before the first
   * request, and requests may be sent before the VM runs: they wait in the socket.
   */
  static over(socket: Socket, options: WorkerClientOptions = {}): WorkerClient {
    return new WorkerClient(socket, options);
  }

  /** Resolves with the reason once the channel is gone; never rejects. */
  get closed(): Promise<LostError> {
    return this.#connection.closed;
  }

  /** Requests, tasks and questions that the guest has not finished. */
  get pending(): number {
    return this.#connection.pending;
  }

  /** Asks the worker host who it is; the way to wait for it to have started. */
  async hello(options: WaitOptions = {}): Promise<WorkerHostInfo> {
    const { protocol, runtime, pid, loaded } = await this.#ask("HELLO", undefined, "HELLO", options);
    if (protocol === WORKER_PROTOCOL_VERSION) return { protocol, runtime, pid, loaded };
    const versions = `it speaks version ${protocol}, this is version ${WORKER_PROTOCOL_VERSION}`;
    throw new WorkerError("AGENT_PROTOCOL", `Cannot talk to the worker host: ${versions}`, {
      remote: "VERSION",
    });
  }

  /** The shortest round trip there is. */
  async ping(options: WaitOptions = {}): Promise<void> {
    await this.#ask("PING", undefined, "PONG", options);
  }

  /**
   * Loads the worker, once in a worker host's life.
   *
   * @param worker.entry - the bundle's path in the guest; what the program was started with if absent
   * @param worker.name - for error messages
   * @throws WorkerError AGENT_REFUSED with `remote` LOAD_FAILED and the worker's stack
   */
  async load(
    worker: { entry?: string | undefined; name: string },
    options: WaitOptions = {},
  ): Promise<LoadedInfo> {
    const { entry, name } = worker;
    const fields = { protocol: WORKER_PROTOCOL_VERSION, name, ...(entry === undefined ? {} : { entry }) };
    const { shape, handlers, ms } = await this.#askLong("LOAD", fields, "LOADED", options);
    return { shape, handlers, ms };
  }

  /**
   * Calls the worker's `setup()`, if it has one, then sends it these requests, one after the other, and
   * reads the answers to their ends. What the answers say is for the caller to judge.
   *
   * @throws WorkerError AGENT_REFUSED with `remote` SETUP_FAILED and the worker's stack
   */
  async warm(requests: readonly WorkerRequest[] = [], options: WaitOptions = {}): Promise<WarmInfo> {
    const { ms: setupMs } = await this.#askLong("SETUP", undefined, "SET_UP", options);
    const warmed: WarmedRequest[] = [];
    for (const request of requests) {
      const start = performance.now();
      const response = await this.fetch(request, options);
      let bytes = 0;
      for await (const chunk of response.body) bytes += chunk.length;
      await response.done;
      warmed.push({ status: response.status, bytes, ms: performance.now() - start });
    }
    return { setupMs, requests: warmed };
  }

  /**
   * Brings the channel to rest before the VM is frozen: once this resolves, nothing is under way in
   * either direction until the next call. Refused while requests or tasks run, `waitUntil` and
   * the worker's own requests included.
   *
   * @throws WorkerError AGENT_REFUSED with `remote` BUSY
   */
  async quiesce(options: WaitOptions = {}): Promise<void> {
    const pending = this.#connection.pending + this.#outbound.size;
    if (pending > 0) {
      throw new WorkerError("AGENT_REFUSED", `Cannot quiesce: ${pending} requests are running`, {
        remote: "BUSY",
      });
    }
    this.#intake.pause();
    try {
      await this.#ask("QUIESCE", undefined, "QUIESCED", options, true);
    } catch (error) {
      this.#intake.resume();
      throw error;
    }
  }

  /**
   * Tells a child who it is; the first call in a child. Resolves when the worker's `onFork()` is over,
   * with the milliseconds that this took.
   *
   * @throws WorkerError AGENT_REFUSED with `remote` FORK_FAILED and the worker's stack; BAD_ARGUMENT if
   * variables and secrets do not fit into one frame (64 KiB)
   */
  async forked(fork: ForkInfo, options: WaitOptions = {}): Promise<{ ms: number }> {
    const { vm, env, secrets } = fork;
    checkVariables(env);
    checkVariables(secrets);
    const fields = {
      protocol: WORKER_PROTOCOL_VERSION,
      vm: { id: vm.id, index: vm.index, generation: vm.generation },
      env,
      secrets,
    };
    const { ms } = await this.#askLong("FORKED", fields, "READY", options);
    return { ms };
  }

  /**
   * Sends the worker a request. Resolves with the head of its answer. `timeoutMs` is for that head,
   * and begins anew with each MiB of the request's body that the worker takes; `signal` for all of the exchange: either aborts the worker's request.
   *
   * @throws WorkerError BAD_ARGUMENT, BODY_TOO_LARGE, AGENT_REFUSED with `remote` LIMIT, STATE, EXITED or
   * NO_HANDLER. An error in the worker's handler is a response with status 500.
   */
  async fetch(request: WorkerRequest, options: WorkerFetchOptions = {}): Promise<WorkerResponse> {
    return await this.begin(request, options).response;
  }

  /**
   * As `fetch`, for those who have to know when the guest is through with a request also if it is never
   * answered: `done` of one that was given up settles when the worker has let go of it.
   */
  begin(
    request: WorkerRequest,
    options: WorkerFetchOptions = {},
  ): { response: Promise<WorkerResponse>; done: Promise<DoneInfo> } {
    const { method, url, headers = [], body } = request;
    checkRequest(method, url, headers);
    const requestId = this.#requestId(options);
    const fields = {
      requestId,
      method,
      url,
      headers,
      ...(body === undefined ? {} : { body: true }),
    };
    const what = `${method} ${url.slice(0, 200)}`;
    const exchange = this.#exchange({ what, type: "REQUEST", fields, body }, options);
    const { head, body: answer, done } = exchange;
    const response = head.then(({ status, headers }) => ({ status, headers, body: answer, done }));
    response.catch(() => undefined); // whoever only waits for `done`
    return { response, done };
  }

  /**
   * Gives the worker's `task(input, ctx)` an input and resolves with its value, when what it gave to
   * `waitUntil` has settled too. The input is JSON of at most 8 MiB, the value of at most 1 MiB; `undefined` comes back as null.
   *
   * @throws WorkerError TASK_FAILED with the worker's message and stack; BAD_ARGUMENT, AGENT_REFUSED,
   * AGENT_TIMEOUT, ABORTED
   */
  async task(input: unknown, options: WorkerFetchOptions = {}): Promise<unknown> {
    const body = jsonBytes(input);
    const fields = { requestId: this.#requestId(options) };
    const exchange = this.#exchange({ what: "The task", type: "TASK", fields, body }, options);
    const value = await collectJson(exchange.body, exchange);
    await exchange.done;
    return value;
  }

  /**
   * Calls the worker's `scheduled(event, env, ctx)`. Resolves when what it gave to `waitUntil` has settled
   * too; how long all of it may take is the caller's to say.
   *
   * @param event.time - milliseconds since 1970
   * @throws WorkerError TASK_FAILED with the worker's message and stack; AGENT_REFUSED, AGENT_TIMEOUT, ABORTED
   */
  async scheduled(
    event: { cron: string; time: number },
    options: WorkerFetchOptions = {},
  ): Promise<DoneInfo> {
    const fields = { requestId: this.#requestId(options), cron: event.cron, time: event.time };
    const exchange = this.#exchange(
      { what: "The scheduled event", type: "SCHEDULED", fields, body: undefined },
      options,
    );
    try {
      for await (const _ of exchange.body);
    } catch (error) {
      throw exchange.failure ?? error;
    }
    return await exchange.done;
  }

  /**
   * Ends the worker host, after what runs in it if that takes no longer than `graceMs` (default 1000).
   * Resolves when it has begun.
   */
  async shutdown(options: WaitOptions & { graceMs?: number } = {}): Promise<void> {
    const fields = options.graceMs === undefined ? undefined : { graceMs: options.graceMs };
    await this.#ask("SHUTDOWN", fields, "STOPPING", options);
  }

  /** Closes the channel; whatever still runs over it rejects with AGENT_CLOSED. */
  close(): void {
    this.#connection.destroy(new WorkerError("AGENT_CLOSED", "The channel was closed by this side"));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.close();
    await this.closed;
  }

  #requestId(options: WorkerFetchOptions): string {
    const id = options.requestId ?? String(++this.#requestCount);
    if (id.length <= workerLimits.NAME_MAX) return id;
    throw new WorkerError("BAD_ARGUMENT", `Cannot use a request id of ${id.length} characters`);
  }

  #exchange(
    start: Omit<ExchangeStart, "maxRequestBytes" | "maxResponseBytes">,
    options: WaitOptions,
  ): Exchange {
    const most = Math.min(this.#options.maxRequests ?? Number.POSITIVE_INFINITY, workerLimits.REQUESTS_MAX);
    if (this.#exchanges >= most) {
      throw new WorkerError("AGENT_REFUSED", `${start.what} was refused: ${most} requests are running`, {
        remote: "LIMIT",
      });
    }
    this.#intake.resume();
    const isTask = start.type === "TASK";
    const { maxRequestBytes = workerLimits.BODY_MAX, maxResponseBytes = workerLimits.BODY_MAX } =
      this.#options;
    const exchange = new Exchange(
      this.#connection,
      {
        ...start,
        maxRequestBytes: isTask ? workerLimits.TASK_MAX : Math.min(maxRequestBytes, workerLimits.BODY_MAX),
        maxResponseBytes: isTask ? workerLimits.VALUE_MAX : Math.min(maxResponseBytes, workerLimits.BODY_MAX),
      },
      options,
      () => {
        this.#exchanges--;
      },
    );
    this.#exchanges++;
    return exchange;
  }

  #onRecord(message: Extract<GuestMessage, { type: "LOG" | "FAULT" }>): void {
    this.#intake.take(message.cost);
    if (message.type === "LOG") {
      const { type: _type, id: _id, cost: _cost, ...log } = message;
      this.#options.onLog?.(log);
    } else {
      const { type: _type, id: _id, cost: _cost, ...fault } = message;
      this.#options.onFault?.(fault);
    }
  }

  async #ask<T extends GuestMessage["type"]>(
    type: WorkerType,
    fields: Record<string, unknown> | undefined,
    expected: T,
    options: WaitOptions,
    isQuiet = false,
  ): Promise<Extract<GuestMessage, { type: T }>> {
    if (!isQuiet) this.#intake.resume();
    const timeoutMs = options.timeoutMs ?? this.#options.requestTimeoutMs ?? 30_000;
    return await ask(this.#connection, type, fields, expected, { ...options, timeoutMs });
  }

  /** User code runs for the answer: how long that may take, only the caller knows. */
  async #askLong<T extends GuestMessage["type"]>(
    type: WorkerType,
    fields: Record<string, unknown> | undefined,
    expected: T,
    options: WaitOptions,
  ): Promise<Extract<GuestMessage, { type: T }>> {
    this.#intake.resume();
    return await ask(this.#connection, type, fields, expected, options);
  }
}

/** The stream's errors lose TASK_FAILED, which the exchange itself has. */
async function collectJson(body: ReadableStream<Uint8Array>, exchange: Exchange): Promise<unknown> {
  const decoder = new TextDecoder("utf-8", { fatal: true });
  const parts: string[] = [];
  try {
    for await (const chunk of body) parts.push(decoder.decode(chunk, { stream: true }));
    parts.push(decoder.decode());
    return JSON.parse(parts.join(""));
  } catch (error) {
    if (exchange.failure) throw exchange.failure;
    throw new WorkerError("AGENT_PROTOCOL", "The guest sent a task's value that is no JSON", {
      cause: error,
    });
  }
}
