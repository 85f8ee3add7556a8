import { codeOf } from "../../errors/errors.ts";
import type { RequestScope } from "../../runtime/workers/scaling/attempt.ts";
import type { Isolation } from "../../runtime/workers/scaling/isolation.ts";
import { RequestRouter, type RequestRouterOptions } from "../../runtime/workers/scaling/request-router.ts";
import { type HostOptions, type SimulatedChild, SimulatedHost } from "./workers-scaling-host.ts";
import { SimulatedTime, turn } from "./workers-scaling-time.ts";

export interface AskOptions {
  session?: string;
  /** Whether the work says at once that it sends something. @default true */
  starts?: boolean;
  /** Whether the work ends when its signal fires. @default true */
  heeds?: boolean;
}

/** One request, and how it fares. */
export class AskedRequest {
  readonly session: string | undefined;
  /** Children that it was given to. */
  readonly given: SimulatedChild[] = [];
  /** Children that something of it was sent to. */
  readonly sentTo = new Set<SimulatedChild>();
  /** How often it was settled, and with what: "answered", or the code of the error. */
  readonly outcomes: string[] = [];
  error: unknown;
  scope: RequestScope | undefined;
  /** Children with which the work on it goes on: also the first one, if it did not heed its end. */
  readonly workingIn = new Set<SimulatedChild>();
  readonly #abort = new AbortController();
  readonly #options: AskOptions;
  #end = Promise.withResolvers<void>();

  constructor(router: RequestRouter<SimulatedChild>, options: AskOptions) {
    this.#options = options;
    this.session = options.session;
    const { signal } = this.#abort;
    router
      .serve((child, scope) => this.#work(child, scope), { session: options.session, signal })
      .then(
        () => this.outcomes.push("answered"),
        (error: unknown) => {
          this.error = error;
          this.outcomes.push(codeOf(error) ?? "no code");
        },
      );
  }

  get child(): SimulatedChild | undefined {
    return this.given.at(-1);
  }

  get working(): boolean {
    return this.child !== undefined && this.workingIn.has(this.child);
  }

  get outcome(): string | undefined {
    return this.outcomes[0];
  }

  /** Has the work on it end. */
  answer(): void {
    this.#end.resolve();
  }

  fail(error: Error): void {
    this.#end.reject(error);
  }

  abort(): void {
    this.#abort.abort();
  }

  async #work(child: SimulatedChild, scope: RequestScope): Promise<void> {
    const { starts = true, heeds = true } = this.#options;
    if (child.disposals > 0) this.outcomes.push("was given a child that is gone");
    this.given.push(child);
    this.scope = scope;
    this.#end = Promise.withResolvers();
    if (heeds) scope.signal.addEventListener("abort", () => this.#end.reject(scope.signal.reason));
    this.workingIn.add(child);
    try {
      if (starts) this.start();
      await this.#end.promise;
    } finally {
      this.workingIn.delete(child);
    }
  }

  /** Says that the answer has begun. */
  begin(): void {
    this.scope?.answered();
  }

  start(): void {
    this.scope?.started();
    this.sentTo.add(this.child!);
  }
}

/** A router over a simulated host. */
export function openRouter(
  isolation: Isolation,
  options: Partial<HostOptions & RequestRouterOptions<SimulatedChild>> = {},
) {
  const time = new SimulatedTime();
  const host = new SimulatedHost(time, { forkMs: 50, endMs: 5, ...options });
  const router = new RequestRouter({ ports: host, isolation, clock: time, after: time.after, ...options });
  const ask = (asked: AskOptions = {}) => new AskedRequest(router, asked);
  const asks = (count: number, asked: AskOptions = {}) => Array.from({ length: count }, () => ask(asked));
  /** A fork, and what follows, needs no longer than this. */
  const forked = () => time.advance(50);
  return { time, host, router, ask, asks, forked };
}

/** Disposes a router whose children need time to end. */
export async function close(router: AsyncDisposable, time: SimulatedTime): Promise<void> {
  const closing = router[Symbol.asyncDispose]();
  let isOver = false;
  const over = () => {
    isOver = true;
  };
  closing.then(over, over);
  for (let ms = 0; !isOver && ms < 1000; ms++) await time.advance(1);
  await turn();
  if (!isOver) throw new Error("The router does not end");
  await closing;
}
