import { setTimeout as sleep } from "node:timers/promises";
import { WAIT_UNTIL_MS } from "../protocol/worker/constants.ts";
import type { DoneInfo } from "../protocol/worker/guest-messages.ts";
import type { VmInfo } from "../protocol/worker/host-messages.ts";

/** What a worker gets beside its request or input. */
export interface WorkerContext {
  /** Keeps the request open after its response until this settles: at most 30 seconds, but for `scheduled()`. */
  waitUntil(promise: Promise<unknown>): void;
  /** Does nothing: there is no origin behind a worker. Here because others have it. */
  passThroughOnException(): void;
  /** Variables and secrets; empty in a parent. */
  readonly env: Readonly<Record<string, string>>;
  /** Which VM this is; `index` and `generation` are 0 in a parent. */
  readonly vm: Readonly<VmInfo>;
  /** Fires when nobody wants the answer any more. */
  readonly signal: AbortSignal;
  readonly requestId: string;
}

/** The promises of one request. */
export class Waits {
  readonly #onFailed: (error: unknown) => void;
  readonly #open = new Set<Promise<void>>();
  #waited = 0;
  #failed = 0;

  /** @param onFailed - gets what a promise was rejected with */
  constructor(onFailed: (error: unknown) => void) {
    this.#onFailed = onFailed;
  }

  add(promise: unknown): void {
    this.#waited++;
    const settled = Promise.resolve(promise).then(
      () => undefined,
      (error) => {
        this.#failed++;
        this.#onFailed(error);
      },
    );
    const open = settled.then(() => {
      this.#open.delete(open);
    });
    this.#open.add(open);
  }

  /** Waits until all have settled, those included that are added meanwhile; never rejects. */
  async settle(timeoutMs: number = WAIT_UNTIL_MS): Promise<DoneInfo> {
    if (this.#open.size > 0) {
      const limit = new AbortController();
      const isOver = sleep(timeoutMs, true, { signal: limit.signal }).catch(() => true);
      while (this.#open.size > 0) {
        if (await Promise.race([isOver, Promise.all(this.#open).then(() => false)])) break;
      }
      limit.abort();
    }
    return { waited: this.#waited, failed: this.#failed, unsettled: this.#open.size };
  }
}
