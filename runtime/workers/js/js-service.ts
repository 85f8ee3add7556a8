import { availableParallelism } from "node:os";
import { codeOf } from "../../../errors/errors.ts";
import type { OutboundHandler } from "../../../guest-agent/protocol/worker/mod.ts";
import type { FamilyAdmission } from "../../fork/admission.ts";
import type { Parent } from "../../fork/parent.ts";
import { throwIfAborted } from "../../vm/qemu-process.ts";
import type { Isolation } from "../scaling/isolation.ts";
import type { ScalingPorts } from "../scaling/ports.ts";
import { RequestRouter } from "../scaling/request-router.ts";
import type { RouterStats } from "../scaling/router-stats.ts";
import { answerRequest } from "./answer-request.ts";
import { guardForks } from "./fork-guard.ts";
import { ForksUnderWay } from "./forks-under-way.ts";
import { workerRequest } from "./http.ts";
import { JsChild, type WorkerOutput } from "./js-child.ts";
import { figuresOf, noOutcomes, type RequestFigures, type RequestOutcome } from "./request-figures.ts";

export interface JsServiceOptions {
  /** Where children come from: see `forksOf`. */
  ports: ScalingPorts<JsChild>;
  isolation: Isolation;
  /** Children at most. @default 100 */
  maxChildren?: number | undefined;
  /** Requests that wait at most. @default 1000 */
  maxQueue?: number | undefined;
  /** Milliseconds that a request may wait for a child. @default 10000 */
  queueMs?: number | undefined;
  /** Children that are forked ahead of need at most. @default 0 */
  ahead?: number | undefined;
}

export interface ForksOptions {
  /** From `openJsParent`; the caller's to dispose, after the service. */
  parent: Parent;
  admission: FamilyAdmission;
  /** Of the worker; children's host names begin with it. */
  name: string;
  env?: Record<string, string> | undefined;
  secrets?: Record<string, string> | undefined;
  output?: WorkerOutput | undefined;
  /** As of `JsForkOptions`. */
  outbound?: OutboundHandler | undefined;
}

/** Children of one parent. */
export function forksOf(options: ForksOptions): ScalingPorts<JsChild> {
  const { parent, admission, name, env = {}, secrets = {}, output = {}, outbound } = options;
  const underWay = new ForksUnderWay(availableParallelism());
  let index = 0;
  const fork = (signal: AbortSignal) =>
    JsChild.fork(parent, { index: ++index, name, env, secrets, output, outbound, signal });
  const ports: ScalingPorts<JsChild> = {
    fork: (signal) => underWay.during(() => fork(signal)),
    admit: (signal) => admission.acquire({ signal }),
    admitAhead: () => (underWay.isFull ? undefined : admission.tryAcquire()),
  };
  return guardForks(ports, { name });
}

export interface HandleOptions {
  /** The URL that the worker sees. @default the request's */
  url?: string | undefined;
  /** Needed with isolation by session. */
  session?: string | undefined;
  /** Milliseconds from the request's place in a child to the head of its answer. @default 30000 */
  timeoutMs?: number | undefined;
}

const ANSWER_MS = 30_000;

/** What an error says of a request's end; all others are failures. The router counts those who found no child. */
const OUTCOMES: ReadonlyMap<string | undefined, RequestOutcome | undefined> = new Map([
  ["CHILD_DIED", "child-died" as const],
  ["WORKER_TIMEOUT", "timeout" as const],
  ["ABORTED", "canceled" as const],
  ["QUEUE_FULL", undefined],
]);

/** Answers HTTP requests with a JS worker, in VMs that are forked as requests need them. */
export class JsService implements AsyncDisposable {
  readonly #router: RequestRouter<JsChild>;
  readonly #isAlone: boolean;
  readonly #serving = new Set<Promise<unknown>>();
  readonly #outcomes = noOutcomes();

  /** @throws FlurryError BAD_ARGUMENT */
  constructor(options: JsServiceOptions) {
    this.#isAlone = options.isolation.mode === "request";
    this.#router = new RequestRouter<JsChild>(options);
  }

  /**
   * Has a child answer a request. Bodies stream both ways; an error in the worker's handler is an answer
   * with status 500. The child keeps the request until what its handler gave to `waitUntil` is over.
   *
   * @throws FlurryError as `RequestRouter.serve`; WORKER_TIMEOUT when there is no answer in time; CHILD_DIED
   * with the reason when the worker ends; WorkerError when it refuses the request
   */
  async handle(request: Request, options: HandleOptions = {}): Promise<Response> {
    const { url, session, timeoutMs = ANSWER_MS } = options;
    throwIfAborted(request.signal);
    const { promise, resolve, reject } = Promise.withResolvers<Response>();
    const served = this.#router.serve(
      async (child, scope) => {
        scope.started();
        const { signal } = scope;
        const begun = (answer: Response) => {
          resolve(answer);
          scope.answered();
        };
        const answering = { signal, timeoutMs, alone: this.#isAlone, resolve: begun, reject };
        await answerRequest(child, workerRequest(request, url), answering);
      },
      { session, signal: request.signal },
    );
    served.catch(reject);
    this.#served(served);
    return await this.#counted(promise);
  }

  /** As `RequestRouter.giveWay`. */
  giveWay(options: { unusedOnly?: boolean } = {}): boolean {
    return this.#router.giveWay(options);
  }

  /** As `RequestRouter.stopAhead`. */
  stopAhead(): void {
    this.#router.stopAhead();
  }

  /** Resolves when no request is under way. */
  async idle(): Promise<void> {
    while (this.#serving.size > 0) await Promise.allSettled(this.#serving);
  }

  #served(serving: Promise<unknown>): void {
    this.#serving.add(serving);
    const over = () => this.#serving.delete(serving);
    serving.then(over, over);
  }

  stats(): RouterStats {
    return this.#router.stats();
  }

  figures(): RequestFigures {
    return figuresOf(this.stats(), this.#outcomes);
  }

  async #counted(answer: Promise<Response>): Promise<Response> {
    try {
      const response = await answer;
      this.#outcomes.answered += 1;
      return response;
    } catch (error) {
      const code = codeOf(error);
      const outcome = OUTCOMES.has(code) ? OUTCOMES.get(code) : "failed";
      if (outcome) this.#outcomes[outcome] += 1;
      throw error;
    }
  }

  /** Turns away who waits, and ends all children. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#router[Symbol.asyncDispose]();
  }
}
