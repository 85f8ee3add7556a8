import { describe, expect, test } from "bun:test";
import { namesEtag, rangeOf } from "../../runtime/gateway/byte-range.ts";

describe("rangeOf()", () => {
  const table: [string | undefined, ReturnType<typeof rangeOf>][] = [
    [undefined, undefined],
    ["bytes=0-0", { start: 0, end: 1 }],
    ["bytes=0-9", { start: 0, end: 10 }],
    ["bytes=3-", { start: 3, end: 10 }],
    ["bytes=3-5", { start: 3, end: 6 }],
    ["bytes=9-", { start: 9, end: 10 }],
    ["bytes=5-1000", { start: 5, end: 10 }],
    ["bytes=-4", { start: 6, end: 10 }],
    ["bytes=-1000", { start: 0, end: 10 }],
    ["bytes=10-", "unsatisfiable"],
    ["bytes=99999999999999999999-", "unsatisfiable"],
    ["bytes=-0", "unsatisfiable"],
    ["bytes=-", undefined],
    ["bytes=5-4", undefined],
    ["bytes=0-1,3-4", undefined],
    ["bytes=a-b", undefined],
    ["lines=0-1", undefined],
    ["bytes", undefined],
    ["", undefined],
  ];
  for (const [header, expected] of table) {
    test(`gives ${JSON.stringify(expected)} for ${header} of 10 bytes`, () => {
      expect(rangeOf(header, 10)).toEqual(expected);
    });
  }

  test("finds no range in an empty content", () => {
    expect(rangeOf("bytes=0-", 0)).toBe("unsatisfiable");
    expect(rangeOf("bytes=-5", 0)).toBe("unsatisfiable");
  });
});

describe("namesEtag()", () => {
  test("compares weakly, in lists too", () => {
    expect(namesEtag('"a"', '"a"')).toBe(true);
    expect(namesEtag('W/"a"', '"a"')).toBe(true);
    expect(namesEtag('"b", W/"a"', '"a"')).toBe(true);
    expect(namesEtag("*", '"a"')).toBe(true);
    expect(namesEtag('"b"', '"a"')).toBe(false);
    expect(namesEtag("a", '"a"')).toBe(false);
    expect(namesEtag(undefined, '"a"')).toBe(false);
  });
});
