import { afterAll, beforeAll, beforeEach, describe, expect, test } from "bun:test";

const calls: string[] = [];

describe("hooks", () => {
  beforeAll(() => {
    calls.push("beforeAll");
  });
  beforeEach(() => {
    calls.push("beforeEach");
  });
  afterAll(() => {
    calls.push("afterAll");
  });

  test("run before each test", () => {
    expect(calls).toEqual(["beforeAll", "beforeEach"]);
  });

  test("run once for the suite where they are to", async () => {
    await Promise.resolve();
    expect(calls).toEqual(["beforeAll", "beforeEach", "beforeEach"]);
  });

  test.skip("do not run for a test that is skipped", () => {
    throw new Error("This test ran");
  });
});

describe("test.each()", () => {
  const seen: number[] = [];

  test.each([
    [1, 2],
    [3, 4],
  ])("hands over row %d, %d", (left, right) => {
    seen.push(left, right);
    expect(right - left).toBe(1);
  });

  test("ran for every row", () => {
    expect(seen).toEqual([1, 2, 3, 4]);
  });
});

test("expect() fails on what differs", async () => {
  expect(() => expect({ a: 1 }).toEqual({ a: 2 })).toThrow();
  await expect(Promise.reject(new TypeError("no"))).rejects.toThrow("no");
});
