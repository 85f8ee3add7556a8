import { describe, expect, test } from "bun:test";
import { StreamPace } from "../../runtime/gateway/stream-pace.ts";

const never = new AbortController().signal;

describe("StreamPace", () => {
  test("lets a lone stream go on at once, and each of many the later the more there are", async () => {
    const pace = new StreamPace();
    const open = Array.from({ length: 100 }, () => pace.open());
    const began = performance.now();
    await pace.wait(began, never);
    expect(performance.now() - began).toBeGreaterThan(95);
    // A stream that closes twice counts once.
    for (const stream of [...open, ...open]) stream[Symbol.dispose]();
    using _one = pace.open();
    const before = performance.now();
    await pace.wait(before - 1, never);
    expect(performance.now() - before).toBeLessThan(50);
  });

  test("does not hold a stream whose reader is gone", async () => {
    const pace = new StreamPace();
    for (let n = 0; n < 1_000_000; n++) pace.open();
    const gone = new AbortController();
    const waiting = pace.wait(performance.now(), gone.signal);
    gone.abort();
    await waiting;
    await pace.wait(performance.now(), gone.signal);
  });
});
