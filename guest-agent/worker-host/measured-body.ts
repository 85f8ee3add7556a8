import { setImmediate as tick } from "node:timers/promises";
import { bytesOf } from "./chunks.ts";

/** Chunks that are looked at: those of a body that is there already come at once. */
const CHUNKS_MAX = 16;

/** A body to send, and its length where all of it was there at once. */
export interface MeasuredBody {
  body: ReadableStream<unknown>;
  bytes: number | undefined;
}

/**
 * Finds a body's length, if it need not be waited for. A `Request` does not tell whether it was made of a text
 * or of a stream, and one that is sent without its length is refused by many servers.
 */
export async function measure(source: ReadableStream<unknown>): Promise<MeasuredBody> {
  const reader = source.getReader();
  const chunks: Uint8Array[] = [];
  let next = reader.read();
  for (;;) {
    const come = await Promise.race([next, tick()]);
    if (come === undefined || chunks.length >= CHUNKS_MAX)
      return { body: rest(chunks, next, reader), bytes: undefined };
    if (come.done) break;
    chunks.push(bytesOf(come.value));
    next = reader.read();
  }
  const bytes = chunks.reduce((sum, chunk) => sum + chunk.length, 0);
  return { body: streamOf(chunks), bytes };
}

type Read = ReturnType<ReadableStreamDefaultReader<unknown>["read"]>;

function streamOf(chunks: readonly Uint8Array[]): ReadableStream<Uint8Array> {
  return new ReadableStream({
    start(controller) {
      for (const chunk of chunks) controller.enqueue(chunk);
      controller.close();
    },
  });
}

/** The chunks that came, the one that is waited for, and all others. */
function rest(
  chunks: Uint8Array[],
  next: Read,
  reader: ReadableStreamDefaultReader<unknown>,
): ReadableStream<unknown> {
  let awaited: Read | undefined = next;
  return new ReadableStream(
    {
      async pull(controller) {
        const first = chunks.shift();
        if (first) {
          controller.enqueue(first);
          return;
        }
        const { done, value } = await (awaited ?? reader.read());
        awaited = undefined;
        if (done) controller.close();
        else controller.enqueue(value);
      },
      cancel: (reason) => reader.cancel(reason),
    },
    { highWaterMark: 0 },
  );
}
