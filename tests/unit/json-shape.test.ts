import { describe, expect, test } from "bun:test";
import { codeOf } from "../../errors/errors.ts";
import { checkShape } from "../../runtime/json-shape.ts";

function failureOf(text: string): string {
  try {
    checkShape(text, "It");
    return "none";
  } catch (error) {
    return `${codeOf(error)}: ${(error as Error).message}`;
  }
}

describe("checkShape()", () => {
  test("counts depth and values outside of strings only", () => {
    expect(failureOf("[".repeat(100) + "]".repeat(100))).toBe("none");
    expect(failureOf("[".repeat(101))).toBe("BAD_ARGUMENT: It is nested more than 100 deep");
    expect(failureOf('{"a":'.repeat(101))).toBe("BAD_ARGUMENT: It is nested more than 100 deep");
    expect(failureOf(`[${"[],".repeat(1000)}0]`)).toBe("none");
    expect(failureOf(JSON.stringify(["[".repeat(1000), ",".repeat(600_000)]))).toBe("none");
    expect(failureOf(`[1${",1".repeat(500_000)}]`)).toBe("BODY_TOO_LARGE: It has more than 500000 values");
  });

  test("knows where a string ends that holds quotes and backslashes", () => {
    const deep = "[".repeat(101);
    for (const inside of [`\\"${deep}`, `\\\\\\"${deep}`, `${deep}\\\\`]) {
      expect(failureOf(`["${inside}"]`)).toBe("none");
    }
    expect(failureOf(`["\\\\",${deep}]`)).toMatch(/nested/);
    // One that does not end is the parser's to refuse.
    expect(failureOf(`["${deep}`)).toBe("none");
  });
});
