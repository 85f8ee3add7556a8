import type { z } from "zod";
import { FlurryError } from "../../errors/errors.ts";
import { parseJson } from "./gateway-error.ts";
import { splitLines } from "./lines.ts";

/** A stream that reads on only when its reader does. */
export function streamOf(source: AsyncIterable<Uint8Array>): ReadableStream<Uint8Array> {
  const chunks = source[Symbol.asyncIterator]();
  return new ReadableStream<Uint8Array>(
    {
      async pull(controller) {
        const next = await chunks.next();
        if (next.done) controller.close();
        else controller.enqueue(next.value);
      },
      async cancel() {
        await chunks.return?.();
      },
    },
    { highWaterMark: 0 },
  );
}

/** Values of NDJSON that is checked by a schema. @throws FlurryError GATEWAY_FAILED */
export async function* lines<T extends z.ZodType>(
  schema: T,
  what: string,
  body: AsyncIterable<Uint8Array>,
): AsyncGenerator<z.output<T>, void, undefined> {
  for await (const line of splitLines(body, "lf")) {
    // An empty line keeps a connection alive that has nothing to say.
    if (line.trim() !== "") yield parsed(schema, line, what);
  }
}

/** A value of JSON that is checked by a schema. @throws FlurryError GATEWAY_FAILED */
export function parsed<T extends z.ZodType>(schema: T, text: string, what: string): z.output<T> {
  const result = schema.safeParse(parseJson(text));
  if (result.success) return result.data;
  const shown = text.length > 200 ? `${text.slice(0, 200)}…` : text;
  throw new FlurryError("GATEWAY_FAILED", `Cannot read the gateway's ${what}: ${JSON.stringify(shown)}`, {
    cause: result.error,
  });
}
