import { getLogger } from "@logtape/logtape";

const logger = getLogger(["flurry", "gateway"]);

/** Pieces of a body, made one after the other; it ends when `signal` is aborted. */
export type Pieces = (signal: AbortSignal) => AsyncGenerator<string | Uint8Array>;

/**
 * A response's body that is made as it is read: a reader that is slow, or that stops, holds the one piece
 * that is on its way. It ends with the reader, with its last piece, or when `ending` is aborted.
 *
 * Nothing is opened before the first read, so a body that nobody reads (HEAD) holds nothing.
 */
export function pagedBody(pieces: Pieces, ending: AbortSignal): ReadableStream<Uint8Array> {
  const encoder = new TextEncoder();
  const gone = new AbortController();
  const signal = AbortSignal.any([gone.signal, ending]);
  const iterator = pieces(signal);
  return new ReadableStream<Uint8Array>(
    {
      async pull(controller) {
        try {
          const { done, value } = await iterator.next();
          // The reader went away meanwhile: there is nothing to close.
          if (gone.signal.aborted) return;
          if (!done) return controller.enqueue(typeof value === "string" ? encoder.encode(value) : value);
          controller.close();
        } catch (error) {
          if (gone.signal.aborted) return;
          // The status has been sent: all that is left is to break off, so that nobody takes it for the end.
          logger.error("A stream failed: {error}", { error });
          controller.error(error);
        }
        // The signal of the gateway outlives this one, and would hold it.
        gone.abort();
      },
      async cancel(reason) {
        gone.abort(reason);
        await iterator.return(undefined);
      },
    },
    { highWaterMark: 0 },
  );
}
