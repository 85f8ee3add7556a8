import { describe, expect, test } from "bun:test";
import type { WorkerResponse } from "../../guest-agent/protocol/worker/mod.ts";
import { answerOf } from "../../runtime/workers/js/http.ts";

/** What came of a worker: its parts one by one, then an error if there is one. */
function given(status: number, headers: [string, string][], parts: string[], error?: Error) {
  let cancelled = 0;
  const rest = [...parts];
  const body = new ReadableStream<Uint8Array>(
    {
      async pull(controller) {
        await Promise.resolve();
        const part = rest.shift();
        if (part !== undefined) controller.enqueue(new TextEncoder().encode(part));
        else if (error) controller.error(error);
        else controller.close();
      },
      cancel: () => {
        cancelled++;
      },
    },
    { highWaterMark: 0 },
  );
  const response = { status, headers, body, done: Promise.resolve() } as unknown as WorkerResponse;
  return { response, left: () => rest.length, cancelled: () => cancelled };
}

const length = (bytes: number): [string, string][] => [["content-length", String(bytes)]];

describe("answerOf()", () => {
  test("waits for a body of known length, and not for one of unknown or large length", async () => {
    const known = given(200, length(6), ["one", "two"]);
    const { answer, read } = await answerOf("GET", known.response);
    expect(known.left()).toBe(0);
    await read;
    expect(await answer.text()).toBe("onetwo");
    for (const headers of [[], length((1 << 20) + 1), length(-1), [["content-length", "x"]]] as const) {
      const other = given(200, headers as [string, string][], ["one", "two"]);
      const streamed = await answerOf("GET", other.response);
      expect(other.left()).toBe(2);
      expect(await streamed.answer.text()).toBe("onetwo");
      await streamed.read;
    }
  });

  test("gives the whole body on when the guest says a wrong length, and never that length", async () => {
    for (const said of [0, 2, 4, 100]) {
      const { response } = given(200, length(said), ["one", "two", "three"]);
      const { answer, read } = await answerOf("GET", response);
      expect(answer.headers.get("content-length")).toBeNull();
      expect(await answer.text()).toBe("onetwothree");
      await read;
    }
  });

  test("fails where a body of known length breaks off, and lets one of unknown length break off later", async () => {
    const broken = new Error("broken");
    expect(answerOf("GET", given(200, length(9), ["one"], broken).response)).rejects.toBe(broken);
    const { answer, read } = await answerOf("GET", given(200, [], ["one"], broken).response);
    expect(answer.text()).rejects.toBe(broken);
    expect(read).rejects.toBe(broken);
  });

  test("gives no body to HEAD and where a status has none, with the length that GET would have", async () => {
    const head = given(200, length(3), ["one"]);
    const { answer } = await answerOf("HEAD", head.response);
    expect([answer.body, answer.headers.get("content-length"), head.cancelled()]).toEqual([null, "3", 1]);
    const none = await answerOf("GET", given(304, [["etag", '"x"']], []).response);
    expect([none.answer.status, none.answer.body, none.answer.headers.get("etag")]).toEqual([
      304,
      null,
      '"x"',
    ]);
  });
});
