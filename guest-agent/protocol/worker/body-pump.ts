import { WorkerError } from "./errors.ts";

/** Bytes for the guest: all at once, or as they come. */
export type WorkerBody = Uint8Array | ReadableStream<Uint8Array> | AsyncIterable<Uint8Array>;

/** A body being sent. */
export interface BodyPump {
  /** Settles when the source has ended or was let go. Rejects with the source's error. */
  readonly finished: Promise<void>;
  /** Lets the source go. It is not waited for: it may be silent for ever. */
  stop(reason: unknown): void;
}

/** Passes the chunks of `body` to `write`, one after the other; what `write` throws ends it. */
export function pumpBody(body: WorkerBody, write: (chunk: Uint8Array) => Promise<void>): BodyPump {
  const source = openSource(body);
  let stopped = false;
  const run = async () => {
    for (;;) {
      const { done, value } = await source.next();
      if (done || stopped) return;
      if (!(value instanceof Uint8Array)) {
        throw new WorkerError("BAD_ARGUMENT", "A body has a chunk that is no Uint8Array");
      }
      await write(value);
    }
  };
  const stop = (reason: unknown) => {
    if (stopped) return;
    stopped = true;
    source.stop(reason);
  };
  return { finished: run(), stop };
}

interface Source {
  next(): Promise<{ done: boolean; value?: unknown }>;
  stop(reason: unknown): void;
}

function openSource(body: WorkerBody): Source {
  const ignored = () => undefined; // the request is over, with an error or an answer that counts
  if (body instanceof ReadableStream) {
    const reader = body.getReader();
    return { next: () => reader.read(), stop: (reason) => void reader.cancel(reason).catch(ignored) };
  }
  const iterator = body instanceof Uint8Array ? once(body) : body[Symbol.asyncIterator]();
  return {
    next: async () => {
      const { done, value } = await iterator.next();
      return { done: done === true, value };
    },
    stop: () => void iterator.return?.().catch(ignored),
  };
}

async function* once(chunk: Uint8Array): AsyncGenerator<Uint8Array> {
  yield chunk;
}
