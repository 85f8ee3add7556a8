import { askedWait, delay, isPassing } from "./transport.ts";

/** Connections in a row that failed, after which a stream that has never been there is given up. */
const MAX_FAILURES = 8;
/** The same for one that has been there: a gateway that is stopped to be replaced comes back in minutes. */
const PATIENCE = 60;
const FIRST_WAIT_MS = 100;
const LONGEST_WAIT_MS = 5000;

/** A stream that can be taken up again where it was. */
export interface Followed<T> {
  /** Connects; gives the items after those that have been given out. */
  open(): AsyncIterable<T>;
  /** Notes that an item has been given out: the next `open` goes on after it. */
  passed(item: T): void;
  /** Whether nothing can come after all that was given out. Asked when a connection ended as it should. */
  complete(gotAny: boolean): boolean | Promise<boolean>;
  signal?: AbortSignal | undefined;
  /** @default `delay` */
  pause?: typeof delay | undefined;
}

/**
 * Gives out each item once, over as many connections as that takes. A connection that is lost, or that
 * ends before all is told (the gateway was stopped, a proxy cut it), is made again, after a growing wait.
 *
 * @throws FlurryError GATEWAY_UNREACHABLE or the gateway's last problem when that keeps failing; ABORTED
 */
export async function* follow<T>(stream: Followed<T>): AsyncGenerator<T, void, undefined> {
  const { pause = delay } = stream;
  let limit = MAX_FAILURES;
  let failures = 0;
  let quiet = 0;
  for (;;) {
    let gotAny = false;
    let askedMs = 0;
    try {
      for await (const item of stream.open()) {
        gotAny = true;
        limit = PATIENCE;
        failures = 0;
        quiet = 0;
        stream.passed(item);
        yield item;
      }
      limit = PATIENCE;
      if (await stream.complete(gotAny)) return;
    } catch (error) {
      if (!isPassing(error) || failures >= limit) throw error;
      failures += 1;
      askedMs = Math.min(askedWait(error), LONGEST_WAIT_MS);
    }
    const waitMs = Math.min(LONGEST_WAIT_MS, FIRST_WAIT_MS * 2 ** quiet);
    quiet += 1;
    await pause(Math.max(askedMs, waitMs * (0.5 + Math.random() / 2)), stream.signal);
  }
}
