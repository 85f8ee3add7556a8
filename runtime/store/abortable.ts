import { FlurryError } from "../../errors/errors.ts";

/**
 * Passes a source on until the signal is aborted, also while the source is silent.
 *
 * @param what - what the source is read for, such as `Cannot store blob "x"`
 * @throws FlurryError ABORTED; whatever the source throws
 */
export async function* abortable<T>(
  source: AsyncIterable<T>,
  what: string,
  signal: AbortSignal | undefined,
): AsyncGenerator<T> {
  const iterator = source[Symbol.asyncIterator]();
  let ended = false;
  try {
    for (;;) {
      const step = await nextOf(iterator, what, signal);
      ended = step.done ?? false;
      if (step.done) return;
      yield step.value;
    }
  } finally {
    if (!ended) await leave(iterator, signal);
  }
}

/** One listener a step: a promise of the abort that lasted would keep every chunk that it was raced with. */
function nextOf<T>(
  iterator: AsyncIterator<T>,
  what: string,
  signal: AbortSignal | undefined,
): Promise<IteratorResult<T>> {
  if (!signal) return iterator.next();
  return new Promise((resolve, reject) => {
    const abort = () =>
      reject(new FlurryError("ABORTED", `${what}: it was aborted`, { cause: signal.reason }));
    if (signal.aborted) return abort();
    signal.addEventListener("abort", abort, { once: true });
    iterator
      .next()
      .then(resolve, reject)
      .finally(() => signal.removeEventListener("abort", abort));
  });
}

/** Lets a source release what it holds. After an abort it may be silent for ever: nobody waits for it then. */
async function leave(iterator: AsyncIterator<unknown>, signal: AbortSignal | undefined): Promise<void> {
  const left = Promise.resolve(iterator.return?.());
  if (!signal?.aborted) await left;
  else left.catch(() => "the abort is what counts");
}
