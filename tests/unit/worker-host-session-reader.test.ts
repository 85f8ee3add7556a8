import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { encodeData, encodeMessage } from "../../guest-agent/protocol/codec.ts";
import { MARKER, messageTypes } from "../../guest-agent/protocol/constants.ts";
import { SessionReader } from "../../guest-agent/worker-host/session-reader.ts";

const ping = encodeMessage(messageTypes.PING, 7);

/** What a reader tells of a stream that arrives in these pieces. */
function told(...chunks: Uint8Array[]): string[] {
  const events: string[] = [];
  const reader = new SessionReader({
    onSession: () => events.push("session"),
    onPayload: (payload) => events.push(Buffer.from(payload).toString("hex")),
    onBroken: () => events.push("broken"),
  });
  for (const chunk of chunks) reader.push(chunk);
  return events;
}

const payload = Buffer.from(ping.subarray(4)).toString("hex");

describe("SessionReader", () => {
  test("drops what comes before the first marker", () => {
    expect(told(ping, ping)).toEqual([]);
    expect(told(Buffer.concat([ping, MARKER, ping]))).toEqual(["session", payload]);
  });

  test("begins anew at a marker within half a frame", () => {
    const half = ping.subarray(0, ping.length - 1);
    expect(told(Buffer.concat([MARKER, half, MARKER, ping]))).toEqual(["session", "session", payload]);
    expect(told(MARKER, half, MARKER, ping)).toEqual(["session", "session", payload]);
    expect(told(MARKER, ping.subarray(0, 2), MARKER, ping)).toEqual(["session", "session", payload]);
  });

  test("drops everything after a frame above the cap, up to the next marker", () => {
    const large = Uint8Array.of(0x7f, 0, 0, 0);
    expect(told(Buffer.concat([MARKER, ping, large, ping, MARKER, ping]))).toEqual([
      "session",
      payload,
      "broken",
      "session",
      payload,
    ]);
  });

  test("gives a frame that ends as a marker begins without waiting for more", () => {
    const data = encodeData(1, 0, MARKER.subarray(0, 7));
    expect(told(MARKER, data)).toHaveLength(2);
  });

  test("tells the same of whole sessions however the stream is cut", () => {
    const frames = fc.oneof(
      fc.nat().map((id) => encodeMessage(messageTypes.PING, id)),
      fc.uint8Array({ minLength: 1, maxLength: 300 }).map((bytes) => encodeData(3, 0, bytes)),
      fc.constant(encodeData(3, 0, MARKER.subarray(0, 5))),
      fc.constant(MARKER),
    );
    fc.assert(
      fc.property(
        fc.array(frames, { maxLength: 15 }),
        fc.array(fc.nat(40), { maxLength: 60 }),
        (parts, cuts) => {
          const stream = Buffer.concat([MARKER, ...parts]);
          const chunks: Uint8Array[] = [];
          let at = 0;
          for (const cut of [...cuts, stream.length]) {
            chunks.push(stream.subarray(at, at + cut));
            at += cut;
          }
          expect(told(...chunks)).toEqual(told(stream));
        },
      ),
      { seed: 11, numRuns: 2000 },
    );
  });
});
