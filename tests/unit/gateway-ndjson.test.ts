import { describe, expect, test } from "bun:test";
import { createHash } from "node:crypto";
import { codeOf } from "../../errors/errors.ts";
import { NdjsonBody } from "../../runtime/gateway/ndjson.ts";

const LIMITS = { headBytes: 1000, bodyBytes: 10_000_000, silenceMs: 10_000 };

/** A body in chunks, and how many of them have been asked for. */
function bodyOf(chunks: readonly (string | Uint8Array)[]) {
  const seen = { pulls: 0, canceled: false };
  const body = new ReadableStream<Uint8Array>(
    {
      pull(controller) {
        const chunk = chunks[seen.pulls];
        seen.pulls += 1;
        if (chunk === undefined) controller.close();
        else controller.enqueue(typeof chunk === "string" ? new TextEncoder().encode(chunk) : chunk);
      },
      cancel() {
        seen.canceled = true;
      },
    },
    { highWaterMark: 0 },
  );
  return { body, seen };
}

async function valuesOf(chunks: readonly (string | Uint8Array)[], limits = LIMITS): Promise<unknown[]> {
  await using lines = new NdjsonBody(bodyOf(chunks).body, limits);
  const values = [await lines.first()];
  for await (const value of lines.rest()) values.push(value);
  return values;
}

async function failureOf(chunks: readonly (string | Uint8Array)[], limits = LIMITS): Promise<string> {
  try {
    await valuesOf(chunks, limits);
    return "none";
  } catch (error) {
    return `${codeOf(error)}: ${(error as Error).message}`;
  }
}

describe("NdjsonBody", () => {
  test("gives the same values however the body is cut", async () => {
    const text = '{"a":1}\r\n\n"ü€😀"\n 2 \n[3]';
    const bytes = new TextEncoder().encode(text);
    const expected = [{ a: 1 }, "ü€😀", 2, [3]];
    for (let size = 1; size <= bytes.length; size++) {
      const chunks: Uint8Array[] = [];
      for (let at = 0; at < bytes.length; at += size) chunks.push(bytes.subarray(at, at + size));
      expect(await valuesOf(chunks)).toEqual(expected);
    }
  });

  test("names the line that is wrong, empty ones counted", async () => {
    expect(await failureOf(['{}\n\n1\n{"a":\n2\n'])).toMatch(/^BAD_ARGUMENT: Line 4 is no JSON: /);
    expect(await failureOf(["{}\n1\n", "2\n", "x"])).toMatch(/^BAD_ARGUMENT: Line 4 is no JSON: /);
    expect(await failureOf([new Uint8Array([123, 125, 10, 49, 10, 34, 255, 34, 10])])).toBe(
      "BAD_ARGUMENT: Line 3 is not UTF-8",
    );
    expect(await failureOf([`{}\n${"[".repeat(101)}${"]".repeat(101)}\n`])).toBe(
      "BAD_ARGUMENT: Line 2 is nested more than 100 deep",
    );
  });

  test("refuses a body without lines, and lines and bodies that are too long", async () => {
    expect(await failureOf([])).toMatch(/^BAD_ARGUMENT: The body is empty/);
    expect(await failureOf(["\n \n"])).toMatch(/^BAD_ARGUMENT: The body is empty/);
    expect(await failureOf([`"${"x".repeat(1000)}"\n`])).toBe(
      "BODY_TOO_LARGE: Line 1 has more than 1000 bytes",
    );
    // Also one that never ends: it is not collected until its end.
    expect(await failureOf(["{}\n", ...Array<string>(100).fill("x".repeat(10_000))])).toBe(
      "BODY_TOO_LARGE: Line 2 has more than 524288 bytes",
    );
    expect(await failureOf(["{}\n", "1\n".repeat(50)], { ...LIMITS, headBytes: 10, bodyBytes: 100 })).toBe(
      "BODY_TOO_LARGE: The body has more than 100 bytes",
    );
  });

  test("reads no further than it is asked, and gives the rest up", async () => {
    const { body, seen } = bodyOf(Array<string>(1000).fill("1\n2\n3\n"));
    {
      await using lines = new NdjsonBody(body, LIMITS);
      await lines.first();
      let count = 0;
      for await (const _ of lines.rest()) if (++count === 10) break;
      expect(seen.pulls).toBe(4);
    }
    expect(seen.canceled).toBe(true);
  });

  test("gives the hash of all that was sent, what it skips too", async () => {
    const text = '{}\n\n1\r\n  2\n"end"';
    await using lines = new NdjsonBody(bodyOf([text.slice(0, 5), text.slice(5)]).body, LIMITS);
    await lines.first();
    for await (const _ of lines.rest());
    expect(lines.digest()).toBe(createHash("sha256").update(text).digest("hex"));
  });

  test("tells a sender that went away from one that sends nonsense", async () => {
    const body = new ReadableStream<Uint8Array>({
      start(controller) {
        controller.enqueue(new TextEncoder().encode("{}\n1\n"));
      },
      pull() {
        throw new Error("connection reset");
      },
    });
    await using lines = new NdjsonBody(body, LIMITS);
    await lines.first();
    const rest = async () => {
      for await (const _ of lines.rest());
    };
    expect(await rest().catch(codeOf)).toBe("ABORTED");
  });
});
