import { FlurryError } from "../../errors/errors.ts";

/** Bytes that are collected before they are sent: a write for each short line would be slow. */
const CHUNK_BYTES = 64 * 1024;

/**
 * A body of NDJSON: `head`, then each item. Items are taken as the receiver reads, not ahead of it.
 *
 * @param onError - is told when the items themselves fail; fetch would hide it
 */
export function ndjsonBody(
  head: unknown,
  items: AsyncIterable<unknown> | Iterable<unknown>,
  onError: (error: unknown) => void,
): ReadableStream<Uint8Array> {
  const encoder = new TextEncoder();
  const iterator = Symbol.asyncIterator in items ? items[Symbol.asyncIterator]() : items[Symbol.iterator]();
  let pending = `${JSON.stringify(head)}\n`;
  let ended = false;
  return new ReadableStream<Uint8Array>(
    {
      async pull(controller) {
        try {
          while (!ended && pending.length < CHUNK_BYTES) {
            const next = await iterator.next();
            ended = next.done === true;
            if (!ended) pending += `${jsonOf(next.value)}\n`;
          }
        } catch (error) {
          onError(error);
          controller.error(error);
          return;
        }
        if (pending !== "") controller.enqueue(encoder.encode(pending));
        pending = "";
        if (ended) controller.close();
      },
      async cancel() {
        ended = true;
        await iterator.return?.();
      },
    },
    { highWaterMark: 0 },
  );
}

function jsonOf(value: unknown): string {
  const text = JSON.stringify(value);
  if (text === undefined) throw new FlurryError("BAD_ARGUMENT", `Cannot send ${String(value)} as JSON`);
  return text;
}
