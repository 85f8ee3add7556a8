import { describe, expect, test } from "bun:test";
import { PassThrough } from "node:stream";
import { Tail } from "../../runtime/vm/tail.ts";

describe("Tail", () => {
  test("keeps all of a short stream, and the end of a long one", async () => {
    const stream = new PassThrough();
    const tail = new Tail(stream, 10);
    stream.write("abc");
    stream.write("def");
    expect(tail.text()).toBe("abcdef");
    stream.write("0123456789");
    expect(tail.text()).toBe("0123456789");
    stream.write("xy");
    expect(tail.text()).toBe("23456789xy");
    stream.write("a".repeat(1000));
    expect(tail.text()).toBe("a".repeat(10));
  });

  test("keeps no more than its limit in memory of a writer who sends single bytes", () => {
    const stream = new PassThrough({ highWaterMark: 1 });
    const tail = new Tail(stream, 64 * 1024);
    const before = process.memoryUsage.rss();
    // Each as a buffer that holds far more than the byte that is seen of it, as a read from a pipe may.
    for (let count = 0; count < 20_000; count++) stream.emit("data", Buffer.alloc(16384, 1).subarray(0, 1));
    expect(tail.text().length).toBeLessThanOrEqual(64 * 1024);
    expect(process.memoryUsage.rss() - before).toBeLessThan(150 * 1024 * 1024);
  });

  test("gives lines as they are complete, cut at any byte", () => {
    const stream = new PassThrough();
    const lines: string[] = [];
    new Tail(stream, 100, (line) => lines.push(line));
    for (const byte of Buffer.from("één\r\ntwo\nthr")) stream.emit("data", Buffer.of(byte));
    expect(lines).toEqual(["één", "two"]);
    stream.emit("data", Buffer.from("ee\n\nx"));
    expect(lines).toEqual(["één", "two", "three", ""]);
  });

  test("holds no more than a piece of a line that never ends", () => {
    const stream = new PassThrough();
    const lines: string[] = [];
    new Tail(stream, 100, (line) => lines.push(line));
    for (let count = 0; count < 100; count++) stream.emit("data", Buffer.alloc(65536, "x"));
    stream.emit("data", Buffer.from("\n"));
    expect(lines).toHaveLength(1);
    expect(lines[0]!.length).toBeLessThanOrEqual(2048);
  });

  test("survives an error of its stream, and says so", () => {
    const stream = new PassThrough();
    const tail = new Tail(stream, 100);
    stream.emit("data", Buffer.from("before "));
    stream.destroy(new Error("broken pipe"));
    stream.emit("error", new Error("broken pipe"));
    expect(tail.text()).toContain("before");
    expect(tail.text()).toContain("broken pipe");
  });
});
