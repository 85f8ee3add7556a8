import { describe, expect, test } from "bun:test";
import { encodeReturnMessage } from "../../memserver/stream/return-path.ts";
import { readMessages } from "../support/memserver-streams.ts";

function bytes(hex: string): Buffer {
  return Buffer.from(hex.replaceAll(" ", ""), "hex");
}

const RAM0 = "04 72616d30";
const BITMAP = `0005 0005 ${RAM0} 0000000000000008 8100000000000000`;

describe("ReturnPathReader", () => {
  test.each([1, 5, 1000])("reads all messages in chunks of %d, and they are written the same", (length) => {
    const stream = bytes(
      `0002 0004 00000001 0003 0011 0000000000001000 00001000 ${RAM0} 0004 000c 0000000000002000 00002000` +
        `${BITMAP} 0123456789abcdef 0006 0004 00000001 0007 0000 0001 0004 00000000`,
    );
    const messages = readMessages(stream, [length]);
    expect(messages).toEqual([
      { kind: "pong", at: 0, value: 1 },
      { kind: "request", at: 8, block: "ram0", start: 0x1000, length: 0x1000, named: true },
      { kind: "request", at: 29, block: "ram0", start: 0x2000, length: 0x2000, named: false },
      { kind: "recv-bitmap", at: 45, block: "ram0", bits: bytes("8100000000000000") },
      { kind: "resume-ack", at: 78 },
      { kind: "switchover-ack", at: 86 },
      { kind: "shut", at: 90, status: 0 },
    ]);
    expect(Buffer.concat(messages.map(encodeReturnMessage)).equals(stream)).toBe(true);
  });

  test.each([
    ["unknown message 0", 0, "0000 0000"],
    ["unknown message 8", 0, "0008 0000"],
    ["message 2 has 5 bytes", 0, "0002 0005"],
    ["message 4 has 11 bytes", 0, "0004 000b"],
    ["request without a block", 0, "0004 000c 0000000000001000 00001000"],
    ["was not listed", 0, "0003 000e 0000000000001000 00001000 01 78"],
    ["malformed request", 0, "0003 000f 0000000000001000 00001000 01 7878"],
    ["outside of block", 0, `0003 0011 0000000000040000 00001000 ${RAM0}`],
    ["not made of pages", 0, `0003 0011 0000000000000800 00001000 ${RAM0}`],
    ["not made of pages", 0, `0003 0011 0000000000000000 00000000 ${RAM0}`],
    ["bitmap of 4294967295 bytes instead of 8", 9, `0005 0005 ${RAM0} 00000000ffffffff`],
    ["bitmap without an end mark", 25, `${BITMAP} 0123456789abcdee`],
    ["resume answered 2", 0, "0006 0004 00000002"],
    ["message after the last one", 8, "0001 0004 00000000 00"],
    ["ends in a message", 3, "0001 00"],
    ["ends in a message", 25, BITMAP],
  ])("refuses with '%s' at %d", (reason, at, hex) => {
    for (const lengths of [[], [1]]) {
      const read = () => readMessages(bytes(hex), lengths);
      expect(read).toThrow(expect.objectContaining({ code: "STREAM_INVALID" }));
      expect(read).toThrow(reason);
      expect(read).toThrow(new RegExp(`at offset ${at}$`));
    }
  });
});
