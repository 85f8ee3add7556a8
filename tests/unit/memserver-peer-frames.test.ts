import { describe, expect, test } from "bun:test";
import { zstdCompressSync } from "node:zlib";
import { MAX_DESCRIPTOR_BYTES } from "../../memserver/descriptor.ts";
import { frame } from "../../memserver/peer/frames.ts";
import {
  answerReader,
  encodeAnswer,
  encodeHello,
  encodeRequest,
  MAX_READ_PAGES,
  type PeerAnswer,
  type PeerRequest,
  requestReader,
} from "../../memserver/peer/messages.ts";
import { compress, decompress } from "../../memserver/peer/zstd.ts";
import { pageOf } from "../support/memserver-pages.ts";
import { PEER_ANSWERS, PEER_REQUESTS, readAnswers, readRequests } from "../support/memserver-peers.ts";

const HASH = "0123456789abcdef".repeat(4);

/** Why these bytes are refused after a HELLO. */
function refusal(read: (bytes: Buffer) => unknown, ...parts: Buffer[]): string {
  try {
    read(Buffer.concat([encodeHello(), ...parts]));
  } catch (error) {
    expect(error).toMatchObject({ name: "FlurryError", code: "PEER_FAILED" });
    return (error as Error).message;
  }
  throw new Error("It was read");
}

function withByte(bytes: Buffer, at: number, value: number): Buffer {
  const copy = Buffer.from(bytes);
  copy[at] = value;
  return copy;
}

describe("requestReader()", () => {
  test.each(PEER_REQUESTS.map((request) => [request.kind, request] as [string, PeerRequest]))(
    "reads %s as it was written",
    (_kind, request) => {
      expect(readRequests(Buffer.concat([encodeHello(), encodeRequest(request)]))).toEqual([request]);
    },
  );

  const read = (count: number) =>
    encodeRequest({ kind: "read", id: 1, image: 1, first: 0, count, urgent: false });
  const find = encodeRequest({ kind: "find", id: 1, key: HASH });
  test.each<[string, Buffer, string]>([
    ["an unknown type", frame(99, 1), "Unknown frame 99 at offset 15"],
    ["an answer", encodeAnswer({ kind: "none", id: 1 }), "Unknown frame 131 at offset 15"],
    ["a key that is too short", frame(2, 1, Buffer.alloc(31)), "Frame 2 has 31 bytes at offset 15"],
    ["a key that is too long", frame(2, 1, Buffer.alloc(33)), "Frame 2 has 33 bytes at offset 15"],
    ["a length below its own head", withByte(find, 3, 4), "Frame 2 has -1 bytes at offset 15"],
    ["a request without an id", frame(2, 0, Buffer.alloc(32)), "Request 2 has id 0"],
    ["a CLOSE with an id", frame(7, 3, Buffer.alloc(4)), "Request 7 has id 3"],
    ["no pages", read(0), `0 entries or pages at once, not 1 to ${MAX_READ_PAGES}`],
    ["too many pages", read(257), `257 entries or pages at once, not 1 to ${MAX_READ_PAGES}`],
    ["an unknown flag", withByte(read(1), 19, 2), "READ has flags 2"],
    ["a second HELLO", encodeHello(), "A second HELLO"],
  ])("refuses %s", (_name, bytes, message) => {
    expect(refusal(readRequests, bytes)).toBe(message);
  });

  test("refuses all after the first bad frame", () => {
    const reader = requestReader(() => undefined);
    reader.push(encodeHello());
    expect(() => reader.push(frame(99, 1))).toThrow("Unknown frame 99");
    expect(() => reader.push(find)).toThrow("Unknown frame 99");
  });
});

describe("answerReader()", () => {
  test.each(PEER_ANSWERS.map((answer) => [answer.kind, answer] as [string, PeerAnswer]))(
    "reads %s as it was written",
    (_kind, answer) => {
      expect(readAnswers(Buffer.concat([encodeHello(), encodeAnswer(answer)]))).toEqual([answer]);
    },
  );

  const pages = encodeAnswer({
    ...{ kind: "pages", id: 1, first: 0, count: 1, encoding: "raw" },
    bytes: Buffer.alloc(1),
  });
  test.each<[string, Buffer, string]>([
    ["a request", encodeRequest({ kind: "find", id: 1, key: HASH }), "Unknown frame 2 at offset 15"],
    ["an answer without an id", frame(0x83, 0), "Answer 131 has no id"],
    ["a descriptor that is empty", frame(0x84, 1, Buffer.alloc(8)), "Frame 132 has 8 bytes at offset 15"],
    ["half an entry of a table", frame(0x85, 1, Buffer.alloc(28)), "TABLE has 24 bytes"],
    ["an unknown encoding", withByte(pages, 15, 2), "Pages in encoding 2"],
    ["no pages", withByte(pages, 14, 0), "0 entries or pages at once, not 1 to 256"],
    ["an error without a code", frame(0x88, 1, Buffer.of(0, 65)), "ERROR without a code"],
    ["an error with half a code", frame(0x88, 1, Buffer.of(9, 65)), "ERROR without a code"],
    ["an error with no code", frame(0x88, 1, Buffer.of(1, 10)), "ERROR without a code"],
    ["half a page number", frame(0x89, 1, Buffer.alloc(6)), "WORKING_SET has 6 bytes"],
    [
      "an image that is too large",
      frame(0x84, 1, Buffer.from("00000001ffffffff00", "hex")),
      `An image of ${0xffffffff} pages`,
    ],
  ])("refuses %s", (_name, bytes, message) => {
    expect(refusal(readAnswers, bytes)).toBe(message);
  });

  test("refuses a descriptor that is too large as soon as its length is there", () => {
    const head = frame(0x84, 1, Buffer.alloc(8 + MAX_DESCRIPTOR_BYTES + 1)).subarray(0, 9);
    expect(refusal(readAnswers, head)).toContain("Frame 132 has");
  });

  test("takes no memory for what was only announced", () => {
    const reader = answerReader(() => undefined);
    reader.push(encodeHello());
    reader.push(frame(0x84, 1, Buffer.alloc(8 + MAX_DESCRIPTOR_BYTES)).subarray(0, 5000));
    expect(reader.held).toBe(5000 - 9);
  });

  test("keeps line breaks and escape sequences of a message out of logs", () => {
    const answer: PeerAnswer = { kind: "error", id: 1, code: "INTERNAL", message: "a\nb\u001b[31m" };
    const [read] = readAnswers(Buffer.concat([encodeHello(), encodeAnswer(answer)]));
    expect(read).toMatchObject({ message: "a b [31m" });
  });

  test("writes an error as short as it may be", () => {
    const answer: PeerAnswer = { kind: "error", id: 1, code: "INTERNAL", message: "x".repeat(100_000) };
    const [read] = readAnswers(Buffer.concat([encodeHello(), encodeAnswer(answer)]));
    expect(read).toMatchObject({ code: "INTERNAL", message: "x".repeat(1024 - 9) });
  });
});

describe("HELLO", () => {
  const find = encodeRequest({ kind: "find", id: 1, key: HASH });
  test.each<[string, Buffer, string]>([
    ["comes late", find, "Frame 2 before HELLO"],
    ["has another version", encodeHello(2), "The peer speaks version 2 of the page protocol, not 1"],
    ["has another magic", withByte(encodeHello(), 9, 0), "No HELLO of a memserver"],
    ["has an id", withByte(encodeHello(), 8, 1), "No HELLO of a memserver"],
    ["is another protocol's", Buffer.from("GET / HTTP/1.1\r\n\r\n"), "Unknown frame 47 at offset 0"],
  ])("is refused when it %s", (_name, bytes, message) => {
    for (const read of [readRequests, readAnswers]) {
      if (read === readAnswers && bytes === find) continue;
      expect(() => read(bytes)).toThrow(message);
    }
  });
});

describe("compressed pages", () => {
  const text = Buffer.alloc(4 * 4096, "a page of text, ");
  const packed = compress(text)!;

  test("come out as they went in", () => {
    expect(decompress(packed, text.length).equals(text)).toBe(true);
  });

  test("are left as they are when that saves less than an eighth", () => {
    expect(compress(pageOf(1))).toBeUndefined();
    const bytes = Buffer.concat([
      pageOf(1),
      pageOf(2),
      pageOf(3),
      pageOf(4),
      pageOf(5),
      pageOf(6),
      pageOf(7),
    ]);
    expect(compress(Buffer.concat([bytes, Buffer.alloc(100)]))).toBeUndefined();
    expect(compress(Buffer.concat([bytes, Buffer.alloc(4096 + 4096)]))).toBeDefined();
  });

  test("may be followed by an empty frame, as one encoder does", () => {
    const empty = zstdCompressSync(Buffer.alloc(0));
    expect(decompress(Buffer.concat([packed, empty]), text.length).equals(text)).toBe(true);
  });

  test.each<[string, Buffer, string]>([
    ["are none", Buffer.from("nonsense"), "have no magic"],
    ["end in their head", packed.subarray(0, 6), "end in"],
    ["end in a block", packed.subarray(0, packed.length - 1), "end at"],
    ["have something behind them", Buffer.concat([packed, Buffer.from("x")]), "have no magic"],
    ["are more than they may be", zstdCompressSync(Buffer.alloc(1_000_000)), "compress"],
    ["are one byte more than they may be", zstdCompressSync(Buffer.alloc(16_385)), "compress"],
    // Of 128 MiB, for a block of four bytes.
    ["need much memory", Buffer.from("28b52ffd008821000001020304", "hex"), "need too large a window"],
    // A single segment of 1 TiB.
    ["claim to be huge", Buffer.from("28b52ffde0000000000001000001000000", "hex"), "need too large a window"],
    ["are damaged", withByte(packed, packed.length - 3, packed[packed.length - 3]! ^ 0xff), ""],
  ])("are refused when they %s", (_name, bytes, message) => {
    try {
      // Damage that the format cannot tell gives other bytes, which their hash tells.
      expect(decompress(bytes, text.length).equals(text)).toBe(false);
      expect(message).toBe("");
    } catch (error) {
      expect(error).toMatchObject({
        code: "PEER_FAILED",
        message: expect.stringMatching(new RegExp(message, "i")),
      });
    }
  });
});
