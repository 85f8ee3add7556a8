import type { FlurryError } from "../../../errors/errors.ts";
import type { ChildLike } from "./ports.ts";
import type { Occupant, ServingChild } from "./serving-child.ts";

/** What the work on a request has beside its child. */
export interface RequestScope {
  /** Fires when the work must end: the caller has left, or the child is gone. */
  readonly signal: AbortSignal;
  /**
   * Says that something of the request is about to be sent to the child: from now on it may have
   * effects, and goes to no other child.
   *
   * @throws FlurryError the reason of `signal` when that has fired: nothing may be sent any more
   */
  started(): void;
  /**
   * Says that the answer has begun, so that what is left of it leaves time for other things. It needs not
   * be said: the end of the work says it as well.
   */
  answered(): void;
}

/** What becomes of an attempt. */
export interface AttemptEvents {
  /** As `RequestScope.answered`; may be called twice. */
  onAnswered: () => void;
  /**
   * The work has ended, with its error if it failed: before the outcome is returned, or long after it was
   * cut.
   */
  onEnd: (failure?: { error: unknown }) => void;
}

/** Serves one request with a child. It settles when the answer has been read to its end. */
export type RequestWork<C extends ChildLike, T> = (child: C, scope: RequestScope) => Promise<T>;

/** One request in one child. It has its place there until the work on it has ended. */
export class Attempt<C extends ChildLike> implements Occupant {
  readonly on: ServingChild<C>;
  readonly beganAt: number;
  readonly #abort = new AbortController();
  #started = false;

  constructor(on: ServingChild<C>, now: number) {
    this.on = on;
    this.beganAt = now;
  }

  /** Whether something of the request may have reached the child. */
  get started(): boolean {
    return this.#started;
  }

  cut(error: FlurryError): void {
    this.#abort.abort(error);
  }

  async run<T>(work: RequestWork<C, T>, { onAnswered, onEnd }: AttemptEvents): Promise<T> {
    const { signal } = this.#abort;
    const cut = Promise.withResolvers<never>();
    const onAbort = () => cut.reject(signal.reason);
    signal.addEventListener("abort", onAbort, { once: true });
    const working = this.#work(work, onAnswered);
    working.then(
      () => {
        onAnswered();
        onEnd();
      },
      (error: unknown) => onEnd({ error }),
    );
    try {
      return await Promise.race([working, cut.promise]);
    } finally {
      signal.removeEventListener("abort", onAbort);
    }
  }

  async #work<T>(work: RequestWork<C, T>, onAnswered: () => void): Promise<T> {
    const { signal } = this.#abort;
    // Cut between the moment in which it got its place and this one.
    signal.throwIfAborted();
    return await work(this.on.child, {
      signal,
      started: () => {
        signal.throwIfAborted();
        this.#started = true;
      },
      answered: () => {
        if (!signal.aborted) onAnswered();
      },
    });
  }
}
