import type { FamilyAdmission } from "../../fork/admission.ts";
import type { Parent } from "../../fork/parent.ts";
import { throwIfAborted } from "../../vm/qemu-process.ts";
import type { RequestScope } from "../scaling/attempt.ts";
import type { Isolation } from "../scaling/isolation.ts";
import { RequestRouter } from "../scaling/request-router.ts";
import type { RouterStats } from "../scaling/router-stats.ts";
import { answerOf, workerRequest } from "./http.ts";
import { JsChild, type WorkerOutput } from "./js-child.ts";

export interface JsServiceOptions {
  /** From `openJsParent`; the caller's to dispose, after the service. */
  parent: Parent;
  admission: FamilyAdmission;
  /** Of the worker; children's host names begin with it. */
  name: string;
  isolation: Isolation;
  env?: Record<string, string> | undefined;
  secrets?: Record<string, string> | undefined;
  output?: WorkerOutput | undefined;
  /** Children at most. @default 100 */
  maxChildren?: number | undefined;
  /** Requests that wait at most. @default 1000 */
  maxQueue?: number | undefined;
  /** Milliseconds that a request may wait for a child. @default 10000 */
  queueMs?: number | undefined;
}

export interface HandleOptions {
  /** The URL that the worker sees. @default the request's */
  url?: string | undefined;
  /** Needed with isolation by session. */
  session?: string | undefined;
}

/** Answers HTTP requests with a JS worker, in VMs that are forked as requests need them. */
export class JsService implements AsyncDisposable {
  readonly #router: RequestRouter<JsChild>;
  #children = 0;

  /** @throws FlurryError BAD_ARGUMENT */
  constructor(options: JsServiceOptions) {
    const { parent, admission, name, isolation, env = {}, secrets = {}, output = {} } = options;
    const { maxChildren, maxQueue, queueMs } = options;
    this.#router = new RequestRouter<JsChild>({
      ports: {
        fork: (signal) =>
          JsChild.fork(parent, { index: ++this.#children, name, env, secrets, output, signal }),
        admit: (signal) => admission.acquire({ signal }),
        keepShells: (count) => parent.shells.resize(count),
      },
      ...{ isolation, maxChildren, maxQueue, queueMs },
    });
  }

  /**
   * Has a child answer a request. Bodies stream both ways; an error in the worker's handler is an answer
   * with status 500.
   *
   * @throws FlurryError as `RequestRouter.serve`; WorkerError when the child does not answer
   */
  async handle(request: Request, { url, session }: HandleOptions = {}): Promise<Response> {
    throwIfAborted(request.signal);
    const head = Promise.withResolvers<Response>();
    const work = async ({ worker }: JsChild, scope: RequestScope) => {
      scope.started();
      const response = await worker.fetch(workerRequest(request, url), { signal: scope.signal });
      const { answer, read } = answerOf(request.method, response);
      head.resolve(answer);
      await read;
    };
    this.#router.serve(work, { session, signal: request.signal }).catch(head.reject);
    return await head.promise;
  }

  stats(): RouterStats {
    return this.#router.stats();
  }

  /** Turns away who waits, and ends all children. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#router[Symbol.asyncDispose]();
  }
}
