import { FlurryError } from "../../errors/errors.ts";

/** How long a sender may take. */
export interface Patience {
  /** Longest silence, in ms. */
  silenceMs: number;
  /** Longest time in all, in ms. @default no limit */
  totalMs?: number | undefined;
}

/**
 * The chunks of a request's body. A sender that went away is no failure of ours, and one that stops in
 * the middle is not waited for.
 *
 * @throws FlurryError ABORTED when the body is cut off, BODY_TIMEOUT
 */
export async function* arriving(
  body: ReadableStream<Uint8Array>,
  { silenceMs, totalMs = Number.POSITIVE_INFINITY }: Patience,
): AsyncGenerator<Uint8Array> {
  const reader = body.getReader();
  const until = performance.now() + totalMs;
  let ended = false;
  try {
    while (!ended) {
      const left = Math.max(0, until - performance.now());
      const { done, value } = await readWithin(reader, Math.min(silenceMs, left));
      ended = done;
      if (value !== undefined) yield value;
    }
  } finally {
    if (!ended) await reader.cancel().catch(() => undefined);
  }
}

async function readWithin(reader: ReadableStreamDefaultReader<Uint8Array>, ms: number) {
  const { promise: late, reject } = Promise.withResolvers<never>();
  const timer = setTimeout(() => {
    reject(
      new FlurryError("BODY_TIMEOUT", "The body did not arrive in time", {
        hint: "send it without long breaks",
      }),
    );
  }, ms);
  const read = reader.read().catch((cause: unknown) => {
    throw new FlurryError("ABORTED", "The body did not arrive completely", { cause });
  });
  try {
    return await Promise.race([read, late]);
  } finally {
    clearTimeout(timer);
  }
}
