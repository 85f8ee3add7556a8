import type { Attempt } from "./attempt.ts";
import type { ChildStart, Covered } from "./child-start.ts";
import type { ChildLike } from "./ports.ts";
import type { Queued } from "./wait-queue.ts";

export interface Arrival {
  /** Order of arrival. */
  number: number;
  /** Session; "" when children are for all. */
  key: string;
  arrivedAt: number;
  deadline: number;
}

/** A request that waits for its place in a child: once, or again after a child that died. */
export class Waiter<C extends ChildLike> implements Queued, Covered {
  readonly number: number;
  readonly key: string;
  readonly arrivedAt: number;
  readonly deadline: number;
  cover: ChildStart | undefined;
  /** Children that failed it before anything of it was sent. */
  failures = 0;
  /** Whether it has had a place already. */
  served = false;
  readonly #onStartFailed: (waiter: Waiter<C>, error: unknown) => void;
  #place = Promise.withResolvers<Attempt<C>>();

  constructor(arrival: Arrival, onStartFailed: (waiter: Waiter<C>, error: unknown) => void) {
    this.number = arrival.number;
    this.key = arrival.key;
    this.arrivedAt = arrival.arrivedAt;
    this.deadline = arrival.deadline;
    this.#onStartFailed = onStartFailed;
  }

  /** Its place; call `again` before it waits for another one. */
  get place(): Promise<Attempt<C>> {
    return this.#place.promise;
  }

  again(): void {
    this.#place = Promise.withResolvers();
  }

  resolve(attempt: Attempt<C>): void {
    this.#place.resolve(attempt);
  }

  reject(error: unknown): void {
    this.#place.reject(error);
  }

  startFailed(error: unknown): void {
    this.#onStartFailed(this, error);
  }
}
