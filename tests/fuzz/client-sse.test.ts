import { expect, test } from "bun:test";
import fc from "fast-check";
import { splitLines } from "../../runtime/client/lines.ts";
import { parseEvents, type ServerSentEvent } from "../../runtime/client/sse.ts";

const seed = 20_260_131;
const END = fc.constantFrom("\n", "\r", "\r\n");
/** Text of one line: no line ends, but all that UTF-8 takes several bytes for. */
const text = fc
  .string({ unit: "binary", maxLength: 20 })
  .map((value) => value.replace(/[\r\n\0\ufeff]/g, "·"));

const event = fc.record({
  comment: fc.option(text, { nil: undefined }),
  id: fc.option(text, { nil: undefined }),
  name: fc.option(text, { nil: undefined }),
  data: fc.array(text, { minLength: 1, maxLength: 3 }),
  space: fc.boolean(),
  end: END,
});

/** Cuts bytes at these places. */
async function* cut(bytes: Uint8Array, places: readonly number[]): AsyncGenerator<Uint8Array> {
  const at = [...new Set(places.map((place) => place % (bytes.length + 1)))].sort((a, b) => a - b);
  let from = 0;
  for (const place of [...at, bytes.length]) {
    yield bytes.subarray(from, place);
    from = place;
  }
}

async function collect<T>(items: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const item of items) all.push(item);
  return all;
}

test("parseEvents() reads what was written, whatever the line ends and the chunks are", async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(event, { maxLength: 5 }),
      fc.array(fc.nat(), { maxLength: 20 }),
      fc.boolean(),
      async (events, places, bom) => {
        let written = bom ? "\ufeff" : "";
        let id = "";
        const expected: ServerSentEvent[] = [];
        for (const { comment, id: newId, name, data, space, end } of events) {
          // Without the blank a value must not begin with one: it would be taken for it.
          const field = (label: string, value: string) =>
            `${label}:${space || value.startsWith(" ") ? " " : ""}${value}${end}`;
          if (comment !== undefined) written += field("", comment);
          if (newId !== undefined) written += field("id", newId);
          if (name !== undefined) written += field("event", name);
          for (const line of data) written += field("data", line);
          written += end;
          id = newId ?? id;
          expected.push({ event: name || "message", data: data.join("\n"), id });
        }
        const bytes = new TextEncoder().encode(written);
        expect(await collect(parseEvents(cut(bytes, places)))).toEqual(expected);
        // What is not ended by an empty line is not given out.
        const unfinished = new TextEncoder().encode(`${written}data: more\n`);
        expect(await collect(parseEvents(cut(unfinished, places)))).toEqual(expected);
      },
    ),
    { seed, numRuns: 500 },
  );
});

test("parseEvents() takes any bytes", async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.uint8Array({ maxLength: 200 }),
      fc.array(fc.nat(), { maxLength: 10 }),
      async (bytes, places) => {
        const whole = await collect(parseEvents(cut(bytes, [])));
        expect(await collect(parseEvents(cut(bytes, places)))).toEqual(whole);
      },
    ),
    { seed, numRuns: 500 },
  );
});

test("splitLines() gives the lines of NDJSON back, whatever the chunks are", async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.jsonValue(), { maxLength: 10 }),
      fc.array(fc.nat(), { maxLength: 20 }),
      async (values, places) => {
        const lines = values.map((value) => JSON.stringify(value));
        const bytes = new TextEncoder().encode(`${lines.map((line) => `${line}\n`).join("")}{"cut":`);
        expect(await collect(splitLines(cut(bytes, places), "lf"))).toEqual(lines);
      },
    ),
    { seed, numRuns: 300 },
  );
});
