import { describe, expect, test } from "bun:test";
import { pack, unpack } from "msgpackr";
import { encodeData, encodeMessage, FrameReader } from "../../guest-agent/protocol/codec.ts";
import { limits, MARKER, messageTypes } from "../../guest-agent/protocol/constants.ts";
import { countValues } from "../../guest-agent/protocol/messagepack-check.ts";
import { parseEntries, parseMessage } from "../../guest-agent/protocol/messages.ts";

function payloads(...chunks: Uint8Array[]): Uint8Array[] {
  const reader = new FrameReader();
  const found: Uint8Array[] = [];
  for (const chunk of chunks) reader.push(chunk, (payload) => found.push(payload.slice()));
  return found;
}

const ping = encodeMessage(messageTypes.PING, 7);
const pong = encodeMessage(messageTypes.PONG, 7);

describe("encodeMessage()", () => {
  test("puts the length before [type, id, fields]", () => {
    const frame = encodeMessage(messageTypes.KILL, 9, { target: 3, signal: 15 });
    expect(new DataView(frame.buffer).getUint32(0)).toBe(frame.length - 4);
    expect(unpack(frame.subarray(4))).toEqual([messageTypes.KILL, 9, { target: 3, signal: 15 }]);
  });

  test("refuses what no frame holds, before anything is sent", () => {
    const huge = { argv: ["x".repeat(limits.FRAME_MAX)] };
    expect(() => encodeMessage(messageTypes.EXEC, 1, huge)).toThrow(
      expect.objectContaining({ code: "BAD_ARGUMENT", errno: "E2BIG" }),
    );
  });
});

describe("encodeData()", () => {
  test("writes what a MessagePack decoder reads as a data message", () => {
    const chunk = Uint8Array.from({ length: limits.CHUNK_MAX }, (_, i) => i % 251);
    const frame = encodeData(0xfffffffe, 2, chunk);
    expect(new DataView(frame.buffer).getUint32(0)).toBe(frame.length - 4);
    const [type, id, fields] = unpack(frame.subarray(4)) as [number, number, { s: number; d: Uint8Array }];
    expect([type, id, fields.s]).toEqual([messageTypes.DATA, 0xfffffffe, 2]);
    expect(Buffer.from(fields.d).equals(chunk)).toBe(true);
  });

  test("refuses an empty chunk and one above the cap", () => {
    expect(() => encodeData(1, 0, new Uint8Array(0))).toThrow("0 bytes");
    expect(() => encodeData(1, 0, new Uint8Array(limits.CHUNK_MAX + 1))).toThrow("32705 bytes");
  });
});

describe("FrameReader", () => {
  test("drops what stands before the first marker, also half a frame", () => {
    const half = encodeMessage(messageTypes.PONG, 1).subarray(2);
    expect(payloads(half, MARKER, pong)).toEqual([pong.subarray(4)]);
    expect(payloads(ping, pong)).toEqual([]);
  });

  test("finds the same frames however the stream is cut", () => {
    const long = encodeMessage(messageTypes.ERROR, 3, { code: "SYS", message: "m".repeat(3000) });
    const stream = Buffer.concat([MARKER, pong, long, MARKER, pong, long, pong]);
    const whole = payloads(stream);
    expect(whole.length).toBe(5);
    for (const step of [1, 2, 3, 5, 7, 11, 1000]) {
      const pieces: Uint8Array[] = [];
      for (let at = 0; at < stream.length; at += step) pieces.push(stream.subarray(at, at + step));
      expect(payloads(...pieces)).toEqual(whole);
    }
  });

  test("takes a frame of the largest size and refuses a longer one by its head alone", () => {
    const largest = new Uint8Array(4 + limits.FRAME_MAX);
    new DataView(largest.buffer).setUint32(0, limits.FRAME_MAX);
    expect(payloads(MARKER, largest)[0]!.length).toBe(limits.FRAME_MAX);
    const head = new Uint8Array(4);
    new DataView(head.buffer).setUint32(0, limits.FRAME_MAX + 1);
    expect(() => payloads(MARKER, head)).toThrow(expect.objectContaining({ code: "AGENT_PROTOCOL" }));
  });

  test("refuses a marker that breaks off", () => {
    expect(() => payloads(MARKER, MARKER.subarray(0, 3), ping)).toThrow("broken marker");
  });
});

describe("countValues()", () => {
  test("counts whole values", () => {
    expect(countValues(Buffer.concat([pack(1), pack("x"), pack([1, [2], { a: new Uint8Array(300) }])]))).toBe(
      3,
    );
    expect(countValues(new Uint8Array(0))).toBe(0);
  });

  test("refuses counts and lengths that the bytes cannot hold", () => {
    for (const hex of [
      "ddffffffff",
      "dfffffffff",
      "dcffff00",
      "c6ffffffff",
      "db7fffffff00",
      "a5",
      "93",
      "cf00",
    ])
      expect(countValues(Buffer.from(hex, "hex"))).toBeUndefined();
  });

  test("refuses extensions, the unused tag, and values nested too deep", () => {
    for (const hex of ["d40100", "c7010100", "d6ff00000000", "c1"])
      expect(countValues(Buffer.from(hex, "hex"))).toBeUndefined();
    expect(countValues(Buffer.from("9191919100", "hex"))).toBe(1);
    expect(countValues(Buffer.from("919191919100", "hex"))).toBeUndefined();
  });
});

describe("parseMessage()", () => {
  const bad: [string, unknown][] = [
    ["no array", { a: 1 }],
    ["too short", [3]],
    ["too long", [3, 1, {}, 1]],
    ["an unknown type", [99, 1]],
    ["a request", [messageTypes.EXEC, 1, { argv: ["x"] }]],
    ["a negative id", [messageTypes.PONG, -1]],
    ["an id beyond 32 bits", [messageTypes.PONG, 2 ** 33]],
    ["fields that are an array", [messageTypes.END, 1, []]],
    ["no stream", [messageTypes.END, 1, {}]],
    ["a stream out of range", [messageTypes.END, 1, { s: 3 }]],
    ["data of no bytes", [messageTypes.DATA, 1, { s: 1, d: new Uint8Array(0) }]],
    ["data above the cap", [messageTypes.DATA, 1, { s: 1, d: new Uint8Array(limits.CHUNK_MAX + 1) }]],
    ["data as text", [messageTypes.DATA, 1, { s: 1, d: "x" }]],
    ["an exit with both code and signal", [messageTypes.EXIT, 1, { code: 0, signal: 9 }]],
    ["an exit with neither", [messageTypes.EXIT, 1, {}]],
    ["a fraction", [messageTypes.STARTED, 1, { pid: 1.5 }]],
    ["a hello without a version", [messageTypes.HELLO, 1, {}]],
  ];
  for (const [name, value] of bad) {
    test(`refuses ${name}`, () => {
      expect(() => parseMessage(pack(value))).toThrow(expect.objectContaining({ code: "AGENT_PROTOCOL" }));
    });
  }

  test("skips fields that it does not know", () => {
    const message = parseMessage(pack([messageTypes.STARTED, 5, { pid: 12, colour: "red" }]));
    expect(message).toEqual({ type: "STARTED", id: 5, pid: 12 });
  });
});

describe("parseEntries()", () => {
  test("reads entries behind each other", () => {
    const bytes = Buffer.concat([pack(["a", "dir", 0, 0o755, 5]), pack(["a/b", "file", 2 ** 40, 0o644, 6])]);
    expect(parseEntries(bytes)).toEqual([
      { path: "a", type: "dir", size: 0, mode: 0o755, mtimeMs: 5 },
      { path: "a/b", type: "file", size: 2 ** 40, mode: 0o644, mtimeMs: 6 },
    ]);
  });

  test("refuses a path that leaves the directory", () => {
    for (const path of ["../x", "a/../../x", "/etc/passwd", "a//b", ".", "", "a\0b"])
      expect(() => parseEntries(pack([path, "file", 0, 0, 0]))).toThrow("directory entry");
  });
});
