import { describe, expect, test } from "bun:test";
import { parseLine } from "../../qmp/messages.ts";

describe("parseLine()", () => {
  test("tells the four kinds of message apart", () => {
    const version = { qemu: { major: 7, minor: 2, micro: 18 }, package: "" };
    expect(parseLine(JSON.stringify({ QMP: { version, capabilities: [] } }))).toEqual([
      { kind: "greeting", greeting: { version, capabilities: [] } },
    ]);
    expect(parseLine('{"return":{"a":1},"id":7}\r')).toEqual([{ kind: "return", id: 7, value: { a: 1 } }]);
    expect(parseLine('{"error":{"class":"GenericError","desc":"no"},"id":"x"}')).toEqual([
      { kind: "error", id: "x", qmpClass: "GenericError", description: "no" },
    ]);
    const event = { timestamp: { seconds: 1, microseconds: 2 }, event: "STOP" };
    expect(parseLine(JSON.stringify(event))).toEqual([{ kind: "event", event }]);
  });

  test("takes several objects on one line, with braces and quotes inside strings", () => {
    const kinds = parseLine('{"return":"}{\\"}","id":1} {"return":{"b":[{}]},"id":2}{"return":3,"id":3}\r');
    expect(kinds).toEqual([
      { kind: "return", id: 1, value: '}{"}' },
      { kind: "return", id: 2, value: { b: [{}] } },
      { kind: "return", id: 3, value: 3 },
    ]);
  });

  test("skips blank lines", () => {
    expect(parseLine("")).toEqual([]);
    expect(parseLine(" \r")).toEqual([]);
  });

  test.each([
    ["no JSON", "hello"],
    ["a cut object", '{"return":'],
    ["a good object and rubbish", '{"return":{},"id":1}rubbish'],
    ["rubbish and a good object", 'rubbish{"return":{},"id":1}'],
    ["a list", "[]"],
    ["null", "null"],
    ["a number", "1"],
    ["an object of no known kind", '{"id":1}'],
    ["an error without class", '{"error":{"desc":"x"},"id":1}'],
    ["an error that is a string", '{"error":"x","id":1}'],
    ["an event without timestamp", '{"event":"STOP"}'],
    ["a greeting without version", '{"QMP":{"capabilities":[]}}'],
    [
      "a greeting with a number as capability",
      '{"QMP":{"version":{"qemu":{"major":1,"minor":1,"micro":1},"package":""},"capabilities":[1]}}',
    ],
  ])("refuses %s", (_what, line) => {
    expect(() => parseLine(line)).toThrow(SyntaxError);
  });

  test("quotes only the beginning of a long line", () => {
    expect(() => parseLine("x".repeat(5000))).toThrow(/^Not a QMP message: "x{80}\.\.\."$/);
  });
});
