import type { Socket } from "node:net";
import type { QmpCommands } from "./commands.generated.ts";
import { QmpConnection } from "./connection.ts";
import { QmpError } from "./errors.ts";
import type { EventWait, ExpectOptions, QmpEvent, QmpEventName } from "./event-hub.ts";
import type { EventReader } from "./event-stream.ts";
import type { QmpGreeting, QmpRawEvent } from "./messages.ts";
import { dial, type QmpTransport, socketTransport } from "./transport.ts";
import { checkTimeout, type WaitOptions } from "./wait-limit.ts";

const DEFAULT_TIMEOUT_MS = 30_000;
const DEFAULT_MAX_LINE_BYTES = 16 * 1024 * 1024;
const DEFAULT_EVENT_CAPACITY = 1024;

/** A command that the project uses; `commands-in-use.ts` lists them. */
export type QmpCommandName = keyof QmpCommands;

/** The commands that QEMU takes out of band. */
export type QmpOobCommandName = {
  [C in QmpCommandName]: QmpCommands[C]["oob"] extends true ? C : never;
}[QmpCommandName];

/** What a command takes, from QEMU's own schema. */
export type QmpArguments<C extends QmpCommandName> = QmpCommands[C]["arguments"];

/** What a command answers, from QEMU's own schema. */
export type QmpReturns<C extends QmpCommandName> = QmpCommands[C]["returns"];

/** Arguments may be left out where the command requires none. */
type ExecuteRest<C extends QmpCommandName> =
  Record<never, never> extends QmpArguments<C>
    ? [args?: QmpArguments<C> | undefined, options?: WaitOptions]
    : [args: QmpArguments<C>, options?: WaitOptions];

export interface QmpClientOptions {
  /** What QEMU has written to stderr so far; its tail goes into the errors of a lost connection. */
  stderr?: (() => string) | undefined;
  /**
   * Milliseconds for the handshake, and for each command and event wait that names no limit of its
   * own. QEMU greets at once but answers only when its machine is built. `Infinity` for no limit.
   *
   * @default 30000
   */
  timeoutMs?: number | undefined;
  /**
   * Longest line taken from QEMU, in bytes; a longer one is a QMP_PROTOCOL error.
   *
   * @default 16777216
   */
  maxLineBytes?: number | undefined;
  /** Ends the handshake with ABORTED; of no effect once connected. */
  signal?: AbortSignal | undefined;
}

export interface EventStreamOptions {
  /**
   * How many unread events are held. A reader that falls further behind gets those and then a RangeError.
   *
   * @default 1024
   */
  capacity?: number | undefined;
  /** Ends the stream with ABORTED. */
  signal?: AbortSignal | undefined;
}

/**
 * A client of one QEMU monitor (QEMU Machine Protocol specification). It owns its connection from the
 * call of `connect()` on. Every wait has a time limit; a lost connection fails everything that waits.
 *
 * @example
 * ```ts
 * await using qmp = await QmpClient.connect(socket, { stderr: () => vm.stderrTail() });
 * const resumed = qmp.expect("RESUME"); // listens from here on
 * await qmp.execute("cont");
 * await resumed;
 * ```
 */
export class QmpClient implements AsyncDisposable {
  /** QEMU's greeting: its version and what the monitor can do. */
  readonly greeting: QmpGreeting;
  readonly #connection: QmpConnection;

  private constructor(connection: QmpConnection, greeting: QmpGreeting) {
    this.#connection = connection;
    this.greeting = greeting;
  }

  /**
   * Shakes hands over a connected socket: the one that QEMU opened to a listener of ours
   * (`-qmp unix:PATH`), or one that we opened. The socket is closed if that fails.
   *
   * Events that come right behind the handshake wait for one turn of the event loop, so that a caller
   * who subscribes as soon as this resolves misses none.
   *
   * @throws QmpError QMP_CLOSED, QMP_TIMEOUT, QMP_PROTOCOL or ABORTED.
   */
  static connect(socket: Socket, options: QmpClientOptions = {}): Promise<QmpClient> {
    return QmpClient.over(socketTransport(socket), options);
  }

  /**
   * Dials a unix socket that QEMU serves (`-qmp unix:PATH,server=on,wait=off`) and shakes hands.
   *
   * @throws QmpError as connect() does; QMP_CLOSED when nobody listens at the path.
   */
  static async connectTo(path: string, options: QmpClientOptions = {}): Promise<QmpClient> {
    const transport = socketTransport(await dial(path, options.signal));
    // A monitor that QEMU serves gives its new client the answers that the former one still had
    // coming. Ids that start at random are not mistaken for those.
    const [random = 0] = crypto.getRandomValues(new Uint32Array(1));
    return QmpClient.#open(transport, options, random);
  }

  /** Shakes hands over any transport; connect() says the rest. */
  static over(transport: QmpTransport, options: QmpClientOptions = {}): Promise<QmpClient> {
    return QmpClient.#open(transport, options, 1);
  }

  static async #open(
    transport: QmpTransport,
    options: QmpClientOptions,
    firstId: number,
  ): Promise<QmpClient> {
    const timeoutMs = options.timeoutMs ?? DEFAULT_TIMEOUT_MS;
    checkTimeout(timeoutMs);
    const connection = new QmpConnection(transport, {
      timeoutMs,
      maxLineBytes: options.maxLineBytes ?? DEFAULT_MAX_LINE_BYTES,
      stderr: options.stderr,
      firstId,
    });
    return new QmpClient(connection, await connection.open(options.signal));
  }

  /**
   * Runs a command. On QMP_TIMEOUT and ABORTED only this command fails: QEMU may still carry it out,
   * and its late answer is dropped.
   *
   * QEMU reads its monitor one byte at a time, some microseconds each: where time counts, short
   * paths do, and a command that need not wait for the former one's answer is sent right behind it.
   *
   * @returns What QEMU returned; `{}` for most commands that act.
   * @throws QmpError QMP_COMMAND_FAILED when QEMU refuses, QMP_CLOSED, QMP_TIMEOUT, QMP_PROTOCOL, ABORTED.
   */
  execute<C extends QmpCommandName>(command: C, ...rest: ExecuteRest<C>): Promise<QmpReturns<C>> {
    const [args, options] = rest;
    return this.#call("execute", command, args, options) as Promise<QmpReturns<C>>;
  }

  /**
   * Runs a command out of band: QEMU answers from the monitor's own thread, even while its main loop
   * hangs. It overtakes at most eight commands in band; behind more, QEMU does not read on.
   *
   * @throws QmpError as execute() does; QMP_COMMAND_FAILED also when this monitor has no OOB.
   */
  executeOob<C extends QmpOobCommandName>(command: C, ...rest: ExecuteRest<C>): Promise<QmpReturns<C>> {
    const [args, options] = rest;
    if (!this.greeting.capabilities.includes("oob")) {
      const message = `QMP command "${command}" failed: this monitor takes none out of band`;
      return Promise.reject(new QmpError("QMP_COMMAND_FAILED", message, { command }));
    }
    return this.#call("exec-oob", command, args, options) as Promise<QmpReturns<C>>;
  }

  /**
   * Runs a command that is not among those in use, unchecked. Meant for probing an unknown QEMU;
   * what the project relies on belongs in `commands-in-use.ts`.
   */
  executeUntyped(
    command: string,
    args?: Readonly<Record<string, unknown>>,
    options?: WaitOptions,
  ): Promise<unknown> {
    return this.#call("execute", command, args, options);
  }

  /**
   * Waits for one event. It listens when this returns, so that the caller can then do what causes
   * the event. The result may be awaited, left alone, or disposed (`using`).
   *
   * @throws RangeError at once for a bad time limit; everything else rejects the result:
   * QMP_TIMEOUT, QMP_CLOSED, QMP_PROTOCOL, ABORTED, or what the filter threw.
   */
  expect<E extends QmpEventName>(event: E, options: ExpectOptions<E> = {}): EventWait<QmpEvent<E>> {
    const timeoutMs = options.timeoutMs ?? this.#connection.timeoutMs;
    checkTimeout(timeoutMs);
    return this.#connection.events.expect(event, timeoutMs, options);
  }

  /**
   * Calls the handler for each event until the result is disposed. An error that the handler throws
   * surfaces as an uncaught exception; the client goes on.
   */
  on<E extends QmpEventName>(event: E, handler: (event: QmpEvent<E>) => void): Disposable {
    return this.#connection.events.on(event, handler);
  }

  /**
   * Events in their order, from this call on: those of one name, or all that QEMU sends. The stream
   * ends with our own close() and throws QMP_CLOSED or QMP_PROTOCOL when the connection is lost.
   */
  events(event?: undefined, options?: EventStreamOptions): EventReader<QmpRawEvent>;
  events<E extends QmpEventName>(event: E, options?: EventStreamOptions): EventReader<QmpEvent<E>>;
  events(
    event?: QmpEventName,
    { capacity = DEFAULT_EVENT_CAPACITY, signal }: EventStreamOptions = {},
  ): EventReader<unknown> {
    return this.#connection.events.stream(event, capacity, signal);
  }

  /**
   * Why the connection ended: QMP_CLOSED (our own close() included) or QMP_PROTOCOL. Resolves once
   * everything that was pending has been rejected; never rejects.
   */
  get closed(): Promise<QmpError> {
    return this.#connection.closed;
  }

  /** Drops the connection at once; what is pending is rejected with QMP_CLOSED. QEMU runs on. */
  async close(): Promise<void> {
    this.#connection.close();
    await this.#connection.closed;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #call(
    verb: "execute" | "exec-oob",
    command: string,
    args: object | undefined,
    options: WaitOptions = {},
  ): Promise<unknown> {
    const timeoutMs = options.timeoutMs ?? this.#connection.timeoutMs;
    checkTimeout(timeoutMs);
    return this.#connection.call(verb, command, args, timeoutMs, options.signal);
  }
}
