import { setTimeout as sleep } from "node:timers/promises";
import { WORKER_PROTOCOL_VERSION, workerLimits } from "../protocol/worker/constants.ts";
import { Outbox } from "../protocol/worker/outbox.ts";
import { describeFailure, type WorkerExit } from "./failures.ts";
import { runForkCallbacks } from "./on-fork.ts";
import type { Operation } from "./operation.ts";
import type { OutboundCalls } from "./outbound-calls.ts";
import type { Port, PortEvents } from "./port.ts";
import { cut, type Records } from "./records.ts";
import { runFetch } from "./run-fetch.ts";
import { runScheduled, runTask } from "./run-value.ts";
import { Runner } from "./runner.ts";
import { runFor } from "./scope.ts";
import { type OperationStart, type Question, type Refusal, type Reply, Session } from "./session.ts";
import { SessionReader } from "./session-reader.ts";
import { namesOf, type WorkerHandlers } from "./shape.ts";

/** While so much waits to be sent, nothing more is read: a host that reads nothing gets no more answers. */
const UNREAD_MAX = 1 << 20;

type Of<T extends Question["type"]> = Extract<Question, { type: T }>;

export interface WorkerHostOptions {
  records: Records;
  /** The worker's own requests. */
  calls: OutboundCalls;
  /** The bundle to load when the host names none. */
  entry?: string | undefined;
  /** Finds the handlers of a bundle. */
  load: (entry: string) => Promise<WorkerHandlers>;
  /** Ends this process. @param why - if it does not end well */
  exit: (code: number, why?: string) => void;
}

/** One worker, and the host that speaks of it: one at a time. */
export class WorkerHost implements PortEvents {
  readonly #port: Port;
  readonly #options: WorkerHostOptions;
  readonly #reader: SessionReader;
  #outbox: Outbox | undefined;
  #session: Session | undefined;
  #state: "empty" | "loading" | "loaded" = "empty";
  #runner: Runner | undefined;
  #exit: WorkerExit | undefined;
  /** Handlers that run, those of hosts that went included. */
  #running = 0;

  constructor(port: Port, options: WorkerHostOptions) {
    this.#port = port;
    this.#options = options;
    this.#reader = new SessionReader({
      onSession: () => this.#begin(),
      onPayload: (payload) => this.#session?.onPayload(payload),
      onBroken: () => this.#session?.onBroken(),
    });
    port.start(this);
  }

  onBytes(bytes: Uint8Array): Promise<void> | undefined {
    this.#reader.push(bytes);
    return this.#outbox !== undefined && this.#outbox.waiting > UNREAD_MAX ? this.#outbox.room() : undefined;
  }

  onHangup(): void {
    this.#end();
  }

  /** There is no host without a port: whoever started us sees the exit, and why. */
  onFailed(error: unknown): void {
    this.#options.exit(1, `Cannot read the port: ${String(error)}`);
  }

  /** The worker called `process.exit`: it is asked nothing any more. */
  onExit(exit: WorkerExit): void {
    this.#exit ??= exit;
  }

  onQuestion(question: Question, reply: Reply, session: Session): void {
    switch (question.type) {
      case "HELLO":
        reply("HELLO", {
          protocol: WORKER_PROTOCOL_VERSION,
          runtime: `bun ${process.versions.bun ?? ""}`,
          pid: process.pid,
          loaded: this.#state === "loaded",
        });
        break;
      case "PING":
        reply("PONG");
        break;
      case "QUIESCE":
        this.#quiesce(reply, session);
        break;
      case "SHUTDOWN":
        reply("STOPPING");
        this.#shutDown(question.graceMs, session);
        break;
      default:
        this.#run(() => this.#answer(question, reply));
    }
  }

  onOperation(start: OperationStart, operation: Operation): Refusal | undefined {
    const runner = this.#runner;
    if (this.#exit) return { code: "EXITED", message: this.#exit.message };
    if (runner === undefined) return { code: "STATE", message: "No worker is loaded" };
    const handler = start.type === "REQUEST" ? "fetch" : start.type === "TASK" ? "task" : "scheduled";
    if (runner.handlers[handler] === undefined) {
      return { code: "NO_HANDLER", message: `The worker has no ${handler}()` };
    }
    this.#run(() =>
      runFor(start.requestId, () => {
        if (start.type === "REQUEST") return runFetch(runner, operation, start);
        if (start.type === "TASK") return runTask(runner, operation, start.requestId);
        return runScheduled(runner, operation, start);
      }),
    );
    return undefined;
  }

  #begin(): void {
    this.#end();
    this.#outbox = new Outbox((bytes) => this.#port.write(bytes));
    this.#session = new Session(this.#outbox, this.#options.records, this.#options.calls, this);
  }

  #end(): void {
    this.#session?.close();
    this.#outbox?.close();
    this.#port.forget();
    this.#session = undefined;
    this.#outbox = undefined;
  }

  /** `act` never rejects. While it runs, nothing may be frozen. */
  #run(act: () => Promise<void>): void {
    this.#running++;
    act().finally(() => {
      this.#running--;
    });
  }

  /** Why nothing may be frozen now. */
  get busyReason(): string | undefined {
    const outbound = this.#options.calls.size;
    if (this.#running > 0) return `${this.#running} requests are running`;
    return outbound > 0 ? `${outbound} requests of the worker's own are under way` : undefined;
  }

  #quiesce(reply: Reply, session: Session): void {
    const reason = this.busyReason;
    if (reason === undefined) session.quiet(reply);
    else refuse(reply, "BUSY", reason);
  }

  async #answer(question: Of<"LOAD" | "SETUP" | "FORKED">, reply: Reply): Promise<void> {
    const start = performance.now();
    const ms = () => Math.round(performance.now() - start);
    if (question.type === "LOAD") await this.#load(question, reply, ms);
    else if (this.#runner === undefined) refuse(reply, "STATE", "No worker is loaded");
    else if (this.#exit) refuse(reply, "EXITED", this.#exit.message);
    else if (question.type === "SETUP") await this.#setUp(this.#runner, reply, ms);
    else await this.#fork(this.#runner, question, reply, ms);
  }

  async #load(question: Of<"LOAD">, reply: Reply, ms: () => number): Promise<void> {
    const entry = question.entry ?? this.#options.entry;
    if (isOtherVersion(question.protocol, reply)) return;
    if (this.#state !== "empty") return refuse(reply, "STATE", "A worker is loaded already");
    if (entry === undefined) return refuse(reply, "STATE", "No bundle was named");
    this.#state = "loading";
    try {
      const handlers = await this.#options.load(entry);
      this.#runner = new Runner(handlers, this.#options.records);
      this.#state = "loaded";
      reply("LOADED", { shape: handlers.shape, handlers: namesOf(handlers), ms: ms() });
    } catch (error) {
      // A module that failed stays failed for the runtime: this process loads no other.
      failed(reply, "LOAD_FAILED", `Cannot load the worker "${question.name}"`, error);
    }
  }

  async #setUp(runner: Runner, reply: Reply, ms: () => number): Promise<void> {
    const { context, waits } = runner.context(new AbortController().signal, "setup");
    try {
      await runFor("setup", async () => await runner.handlers.setup?.(context));
      await waits.settle();
      reply("SET_UP", { ms: ms() });
    } catch (error) {
      failed(reply, "SETUP_FAILED", "The worker's setup() failed", error);
    }
  }

  async #fork(runner: Runner, question: Of<"FORKED">, reply: Reply, ms: () => number): Promise<void> {
    if (isOtherVersion(question.protocol, reply)) return;
    try {
      runner.become(question.vm, { ...question.env, ...question.secrets });
      this.#options.calls.open();
      const { context, waits } = runner.context(new AbortController().signal, "fork");
      await runFor("fork", async () => {
        await runForkCallbacks(context);
        await runner.handlers.onFork?.(context);
      });
      await waits.settle();
      reply("READY", { ms: ms() });
    } catch (error) {
      failed(reply, "FORK_FAILED", "The worker's onFork() failed", error);
    }
  }

  /** Ends the process when nothing runs any more, or the grace is over. */
  #shutDown(graceMs: number, session: Session): void {
    const end = performance.now() + graceMs;
    const stop = async () => {
      while (this.#running > 0 && performance.now() < end) await sleep(5);
      // A host that reads nothing does not keep us.
      await Promise.race([session.flushed(), sleep(200)]);
      this.#options.exit(0);
    };
    stop().catch(() => this.#options.exit(1));
  }
}

function refuse(reply: Reply, code: Refusal["code"], message: string): void {
  reply("ERROR", { code, message });
}

function failed(reply: Reply, code: Refusal["code"], what: string, error: unknown): void {
  const { message, stack } = describeFailure(error);
  reply("ERROR", {
    code,
    message: cut(`${what}: ${message}`, workerLimits.MESSAGE_MAX),
    ...(stack === undefined ? {} : { stack: cut(stack, workerLimits.STACK_MAX) }),
  });
}

function isOtherVersion(protocol: number, reply: Reply): boolean {
  if (protocol === WORKER_PROTOCOL_VERSION) return false;
  refuse(reply, "VERSION", `the host speaks version ${protocol}, this is version ${WORKER_PROTOCOL_VERSION}`);
  return true;
}
