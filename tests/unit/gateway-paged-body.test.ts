import { describe, expect, test } from "bun:test";
import { startLogging } from "../../runtime/gateway/logging.ts";
import { type Pieces, pagedBody } from "../../runtime/gateway/paged-body.ts";

/** What is logged when a reader goes away that waits for the second piece. */
async function loggedOf(end: () => void): Promise<string> {
  const written: string[] = [];
  {
    await using _logging = await startLogging({ write: (line) => void written.push(line) });
    const asked = Promise.withResolvers<void>();
    const pieces: Pieces = async function* (signal) {
      yield "a";
      asked.resolve();
      await whenAborted(signal);
      end();
    };
    const reader = pagedBody(pieces, new AbortController().signal).getReader();
    await reader.read();
    const waiting = reader.read();
    await asked.promise;
    await reader.cancel();
    await waiting;
    // What the pieces' end leads to comes after both.
    await new Promise((resolve) => setImmediate(resolve));
  }
  return written.join("");
}

function whenAborted(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => signal.addEventListener("abort", () => resolve(), { once: true }));
}

describe("pagedBody()", () => {
  test("takes a reader that goes away for no failure, whether its pieces end or fail then", async () => {
    const ending = await loggedOf(() => undefined);
    const failing = await loggedOf(() => {
      throw new Error("it was given up");
    });
    expect([ending, failing]).toEqual(["", ""]);
  });

  test("breaks off, and says why, when its pieces fail while somebody reads", async () => {
    const written: string[] = [];
    await using _logging = await startLogging({ write: (line) => void written.push(line) });
    const body = pagedBody(async function* () {
      yield "a";
      throw new Error("it broke");
    }, new AbortController().signal);
    const reader = body.getReader();
    await reader.read();
    await expect(reader.read()).rejects.toThrow("it broke");
    expect(written.join("")).toContain("A stream failed");
  });
});
