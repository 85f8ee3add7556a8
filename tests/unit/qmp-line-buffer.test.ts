import { describe, expect, test } from "bun:test";
import { Buffer } from "node:buffer";
import { LineBuffer } from "../../qmp/line-buffer.ts";

function linesOf(buffer: LineBuffer): string[] {
  const lines: string[] = [];
  for (let line = buffer.next(); line !== undefined; line = buffer.next()) lines.push(line);
  return lines;
}

describe("LineBuffer", () => {
  test("gives several lines of one chunk and keeps the half one", () => {
    const buffer = new LineBuffer(100);
    buffer.push(Buffer.from("one\ntwo\r\nthr"));
    expect(linesOf(buffer)).toEqual(["one", "two\r"]);
    buffer.push(Buffer.from("ee\n"));
    expect(linesOf(buffer)).toEqual(["three"]);
  });

  test("joins a character whose bytes came in two chunks", () => {
    const buffer = new LineBuffer(100);
    const bytes = Buffer.from("a€b\n");
    buffer.push(bytes.subarray(0, 2));
    expect(buffer.next()).toBeUndefined();
    buffer.push(new Uint8Array(bytes.subarray(2)));
    expect(linesOf(buffer)).toEqual(["a€b"]);
  });

  test("does not join lines when a chunk ends in a newline", () => {
    const buffer = new LineBuffer(100);
    buffer.push(Buffer.from("a"));
    expect(buffer.next()).toBeUndefined();
    buffer.push(Buffer.from("b\n"));
    buffer.push(Buffer.from("c\n\nd\n"));
    expect(linesOf(buffer)).toEqual(["ab", "c", "", "d"]);
  });

  test("takes a line of the cap's length and refuses one byte more, ended or not", () => {
    const exact = new LineBuffer(4);
    exact.push(Buffer.from("abcd\n"));
    expect(exact.next()).toBe("abcd");

    const ended = new LineBuffer(4);
    ended.push(Buffer.from("abcde\n"));
    expect(() => ended.next()).toThrow("Line is longer than 4 bytes");

    const open = new LineBuffer(4);
    open.push(Buffer.from("abc"));
    expect(open.next()).toBeUndefined();
    open.push(Buffer.from("de"));
    expect(() => open.next()).toThrow(RangeError);
  });

  test("reads a long line from tiny chunks in linear time", () => {
    // Copying the whole prefix for each chunk would move half a terabyte here.
    const piece = Buffer.alloc(16, "x");
    const count = 1 << 18;
    const buffer = new LineBuffer(piece.length * count);
    for (let i = 0; i < count; i++) {
      buffer.push(piece);
      if (buffer.next() !== undefined) throw new Error("Line ended without newline");
    }
    buffer.push(Buffer.from("\n"));
    expect(buffer.next()?.length).toBe(piece.length * count);
  });
});
