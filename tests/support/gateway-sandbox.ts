import type { Job, JobEvent, Problem, Scope } from "../../runtime/api/mod.ts";
import type { GatewayContext } from "../../runtime/gateway/context.ts";
import { newKey } from "../../runtime/gateway/keys.ts";
import { type Gateway, type GatewayOptions, openGateway } from "../../runtime/gateway/open.ts";
import type { AttemptEnd, AttemptResult, Claim } from "../../runtime/jobs/ports.ts";
import type { TaskRuntime } from "../../runtime/jobs/task-runtime.ts";
import { DeclaredAnswers } from "./gateway-answers.ts";
import { temporaryDirectory } from "./vm.ts";

/** A job of tasks without inputs. */
export function jobOf(count: number, more: object = {}): object {
  return { worker: { image: "base", command: ["true"] }, tasks: { count }, ...more };
}

/** A runtime that takes no task: the test takes them, and ends them when it likes. */
export function idleRuntime(): TaskRuntime {
  const never = () => Promise.reject(new Error("This runtime runs nothing"));
  return {
    name: "idle",
    cores: 1,
    slots: 0,
    memoryBytes: 0,
    prepare: never,
    readiness: () => ({ state: "cold" }),
    onReadiness: () => ({ [Symbol.dispose]: () => undefined }),
    admit: never,
    run: never,
    [Symbol.asyncDispose]: async () => undefined,
  };
}

/** What all gateways declare. */
let answers: Promise<DeclaredAnswers> | undefined;

/** A gateway in this process, over real HTTP, with a data directory of its own. */
export class GatewaySandbox implements AsyncDisposable {
  readonly #directory = temporaryDirectory();
  #gateway: Gateway | undefined;

  private constructor() {}

  static async open(options: Partial<GatewayOptions> = {}): Promise<GatewaySandbox> {
    const sandbox = new GatewaySandbox();
    try {
      sandbox.#gateway = await openGateway({
        dir: sandbox.dir,
        listen: { hostname: "127.0.0.1", port: 0 },
        runtime: idleRuntime,
        ...options,
      });
    } catch (error) {
      await sandbox[Symbol.asyncDispose]();
      throw error;
    }
    return sandbox;
  }

  get dir(): string {
    return this.#directory.path;
  }

  get url(): string {
    return this.#gateway!.url;
  }

  get port(): number {
    return this.#gateway!.port;
  }

  get context(): GatewayContext {
    return this.#gateway!.context;
  }

  /** Sends a request; an object as `json` becomes its body. The answer has to be one that is declared. */
  async fetch(
    path: string,
    init: RequestInit & { json?: unknown; key?: string | undefined } = {},
  ): Promise<Response> {
    const { json, key, ...rest } = init;
    const headers = new Headers(init.headers);
    if (key !== undefined) headers.set("authorization", `Bearer ${key}`);
    if (json !== undefined) headers.set("content-type", "application/json");
    const body = json === undefined ? rest.body : JSON.stringify(json);
    const response = await fetch(`${this.url}${path}`, {
      ...rest,
      headers,
      ...(body === undefined ? {} : { body }),
    });
    answers ??= DeclaredAnswers.of(this.context);
    await (await answers).check(rest.method ?? "GET", path, response);
    return response;
  }

  /** The JSON of an answer, which is to have this status. */
  async json<T = Job>(
    path: string,
    init: Parameters<GatewaySandbox["fetch"]>[1] = {},
    status = 200,
  ): Promise<T> {
    const response = await this.fetch(path, init);
    const text = await response.text();
    if (response.status !== status) throw new Error(`${path} gave ${response.status}: ${text}`);
    return JSON.parse(text);
  }

  submit(job: object, init: { key?: string; headers?: Record<string, string> } = {}): Promise<Job> {
    return this.json<Job>("/v1/jobs", { method: "POST", json: job, ...init }, 202);
  }

  /** The problem of an answer, with its status. */
  async problem(path: string, init: Parameters<GatewaySandbox["fetch"]>[1] = {}): Promise<Problem> {
    const response = await this.fetch(path, init);
    return problemFrom(response);
  }

  /** A new key. The first one should be an admin's: without one nobody could do anything. */
  async key(scopes: Scope[], limits = {}): Promise<{ id: string; key: string }> {
    const { id, key, hash } = newKey();
    await this.context.store.keys.create({ id, hash, name: id, scopes, limits });
    return { id, key };
  }

  /** Takes the next task, as a dispatcher does. */
  async claim(owner = "", priority = 5): Promise<Claim> {
    const { queue } = this.context.store;
    const blocked = { families: new Set<string>(), owners: new Set<string>() };
    const claim = await queue.claim({ owner, priority }, { blocked, host: "test", leaseMs: 600_000 });
    if (claim === undefined) throw new Error("No task is ready");
    return claim;
  }

  /** Ends a task that was taken; it has succeeded unless `end` says otherwise. */
  async finish(claim: Claim, result: Partial<AttemptResult> = {}, end?: AttemptEnd): Promise<void> {
    const whole = { exitCode: 0, stdout: "", stdoutTruncated: false, artifacts: [], ...result };
    await this.context.store.queue.finish(
      claim.token,
      end ?? { state: "succeeded", reason: "It exited with 0", result: whole },
    );
  }

  /** Counts the listeners that the gateway's streams have at the store. */
  countListeners(): { open: number } {
    const counted = { open: 0 };
    const { jobs, logs } = this.context.store;
    const onChange = jobs.onChange.bind(jobs);
    const onAppend = logs.onAppend.bind(logs);
    const count = (subscription: Disposable): Disposable => {
      counted.open += 1;
      return {
        [Symbol.dispose]: () => {
          counted.open -= 1;
          subscription[Symbol.dispose]();
        },
      };
    };
    jobs.onChange = (listener) => count(onChange(listener));
    logs.onAppend = (listener) => count(onAppend(listener));
    return counted;
  }

  /** Ends the gateway; its data stays. */
  async end(): Promise<void> {
    const gateway = this.#gateway;
    this.#gateway = undefined;
    await gateway?.[Symbol.asyncDispose]();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.end();
    this.#directory[Symbol.dispose]();
  }
}

/** Reads a problem; throws when the answer is none as RFC 9457 wants it. */
export async function problemFrom(response: Response): Promise<Problem> {
  const text = await response.text();
  const type = response.headers.get("content-type");
  if (type !== "application/problem+json")
    throw new Error(`${response.status} is no problem but ${type}: ${text}`);
  const problem: Problem = JSON.parse(text);
  if (problem.status !== response.status)
    throw new Error(`The problem says ${problem.status}: ${response.status}`);
  if (problem.requestId !== response.headers.get("x-request-id")) throw new Error("The request ids differ");
  return problem;
}

/** Reads a stream in pieces, as far as a test wants. */
export class StreamReader implements AsyncDisposable {
  readonly #reader: ReadableStreamDefaultReader<Uint8Array>;
  readonly #decoder = new TextDecoder();
  /** All that has been read and not been taken. */
  #text = "";

  constructor(response: Response) {
    this.#reader = response.body!.getReader();
  }

  /** What comes up to `end`, with it; at the end of the stream, what is left. */
  async until(end: string): Promise<string> {
    for (;;) {
      const at = this.#text.indexOf(end);
      if (at >= 0) return this.#take(at + end.length);
      const { done, value } = await this.#reader.read();
      if (done) return this.#take(this.#text.length);
      this.#text += this.#decoder.decode(value, { stream: true });
    }
  }

  async rest(): Promise<string> {
    return this.until("\u0000 never");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#reader.cancel();
  }

  #take(length: number): string {
    const taken = this.#text.slice(0, length);
    this.#text = this.#text.slice(length);
    return taken;
  }
}

/** The events of a text of Server-Sent Events, with the fields as they were sent. */
export function sseEvents(text: string): { id: string; event: string; data: JobEvent }[] {
  return text
    .split("\n\n")
    .filter((block) => block.includes("data:"))
    .map((block) => {
      const fields = Object.fromEntries(block.split("\n").map((line) => line.split(/: (.*)/s).slice(0, 2)));
      return { id: fields.id, event: fields.event, data: JSON.parse(fields.data) };
    });
}

/** Values of a text of NDJSON. */
export function linesOf<T>(text: string): T[] {
  return text
    .split("\n")
    .filter((line) => line !== "")
    .map((line) => JSON.parse(line));
}

/** Waits until something is so, by looking again and again: for what tells nobody. */
export async function eventually(isSo: () => boolean | Promise<boolean>): Promise<void> {
  for (let tries = 0; tries < 500; tries++) {
    if (await isSo()) return;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  throw new Error("It did not become so");
}
