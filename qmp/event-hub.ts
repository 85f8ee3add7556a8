import type { QmpEvents } from "./commands.generated.ts";
import { QmpError } from "./errors.ts";
import { EventStream } from "./event-stream.ts";
import type { QmpRawEvent } from "./messages.ts";
import { limitWait, type WaitOptions } from "./wait-limit.ts";

/** An event that the project knows; see `commands-in-use.ts`. */
export type QmpEventName = keyof QmpEvents;

/** An event with the data of its name; `data` is undefined for an event that has none. */
export interface QmpEvent<E extends QmpEventName> {
  event: E;
  data: QmpEvents[E];
  /** Host time; both are -1 where the host's clock could not be read. */
  timestamp: { seconds: number; microseconds: number };
}

/**
 * A promise of one event that already listens. Disposing it ends the wait (ABORTED); left alone or
 * disposed, it never becomes an unhandled rejection.
 */
export type EventWait<T> = Promise<T> & Disposable;

export interface ExpectOptions<E extends QmpEventName> extends WaitOptions {
  /** Takes the first event for which this returns true. If it throws, the wait rejects with that. */
  filter?: ((event: QmpEvent<E>) => boolean) | undefined;
}

/** Why the hub fell silent, phrased for whoever waits. */
export type LossReporter = (what: string) => QmpError;

interface Listener {
  event(event: QmpRawEvent): void;
  /** The connection is gone; `ours` when we closed it ourselves. */
  lost(report: LossReporter, ours: boolean): void;
}

/** Hands every event to those who subscribed before it came, in the order in which they subscribed. */
export class EventHub {
  readonly #listeners = new Map<string | undefined, Set<Listener>>();
  #loss: LossReporter | undefined;

  emit(event: QmpRawEvent): void {
    // Snapshots, since a listener may subscribe or unsubscribe while it is called.
    for (const key of [event.event, undefined]) {
      const listeners = this.#listeners.get(key);
      if (listeners !== undefined) for (const listener of [...listeners]) listener.event(event);
    }
  }

  /** Ends every subscription with `report`; later ones end at once, with `reportLater`. */
  lose(report: LossReporter, reportLater: LossReporter, ours: boolean): void {
    this.#loss = reportLater;
    const all = [...this.#listeners.values()].flatMap((listeners) => [...listeners]);
    this.#listeners.clear();
    for (const listener of all) listener.lost(report, ours);
  }

  expect<E extends QmpEventName>(
    name: E,
    timeoutMs: number,
    { filter, signal }: ExpectOptions<E>,
  ): EventWait<QmpEvent<E>> {
    const { promise, resolve, reject } = Promise.withResolvers<QmpEvent<E>>();
    // Whoever awaits the promise sees the rejection; whoever does not must not bring the process down.
    promise.catch(() => undefined);
    const what = `Waiting for QMP event "${name}"`;
    let release = (): void => undefined;
    let unsubscribe = (): void => undefined;
    const fail = (error: unknown): void => {
      release();
      unsubscribe();
      reject(error);
    };
    const dispose = (): void => fail(new QmpError("ABORTED", `${what} was given up`));
    const wait: EventWait<QmpEvent<E>> = Object.assign(promise, { [Symbol.dispose]: dispose });

    if (this.#loss !== undefined) {
      reject(this.#loss(what));
    } else if (signal?.aborted) {
      reject(new QmpError("ABORTED", `${what} was aborted`, { cause: signal.reason }));
    } else {
      unsubscribe = this.#subscribe(name, {
        event: (raw) => {
          const event = raw as QmpEvent<E>;
          try {
            if (filter !== undefined && !filter(event)) return;
          } catch (error) {
            fail(error);
            return;
          }
          release();
          unsubscribe();
          resolve(event);
        },
        lost: (report) => fail(report(what)),
      });
      release = limitWait(timeoutMs, signal, (why) =>
        fail(
          why === "timeout"
            ? new QmpError("QMP_TIMEOUT", `${what} took longer than ${timeoutMs} ms`)
            : new QmpError("ABORTED", `${what} was aborted`, { cause: signal?.reason }),
        ),
      );
    }
    return wait;
  }

  on<E extends QmpEventName>(name: E, handler: (event: QmpEvent<E>) => void): Disposable {
    const unsubscribe = this.#subscribe(name, {
      event: (raw) => {
        try {
          handler(raw as QmpEvent<E>);
        } catch (error) {
          // The handler's bug is neither the reader's nor another listener's; it surfaces as uncaught.
          queueMicrotask(() => {
            throw error;
          });
        }
      },
      lost: () => undefined,
    });
    return { [Symbol.dispose]: unsubscribe };
  }

  stream(
    name: string | undefined,
    capacity: number,
    signal: AbortSignal | undefined,
  ): EventStream<QmpRawEvent> {
    const stream = new EventStream<QmpRawEvent>(capacity, () => {
      unsubscribe();
      signal?.removeEventListener("abort", onAbort);
    });
    const what = name === undefined ? "Reading QMP events" : `Reading QMP events "${name}"`;
    const unsubscribe = this.#subscribe(name, {
      event: (raw) => stream.push(raw),
      lost: (report, ours) => stream.end(ours ? undefined : report(what)),
    });
    const onAbort = (): void => {
      stream.end(new QmpError("ABORTED", `${what} was aborted`, { cause: signal?.reason }));
    };
    signal?.addEventListener("abort", onAbort);
    if (this.#loss !== undefined) stream.end(this.#loss(what));
    else if (signal?.aborted) onAbort();
    return stream;
  }

  #subscribe(name: string | undefined, listener: Listener): () => void {
    let listeners = this.#listeners.get(name);
    if (listeners === undefined) {
      listeners = new Set();
      this.#listeners.set(name, listeners);
    }
    const set = listeners;
    set.add(listener);
    return () => {
      set.delete(listener);
    };
  }
}
