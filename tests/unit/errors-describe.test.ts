import { describe, expect, test } from "bun:test";
import { mkdirSync } from "node:fs";
import { errorCodes } from "../../errors/codes.ts";
import { describeError, FlurryError } from "../../errors/errors.ts";
import { QmpError } from "../../qmp/mod.ts";

/** What the system throws; `code` is all that is looked at. */
function systemError(code: string): Error {
  return Object.assign(new Error(`${code}: said the system`), { code });
}

describe("describeError()", () => {
  test("gives an error of ours its own code, hint, status and exit code", () => {
    const error = new FlurryError("IMAGE_NOT_FOUND", 'No image "x"', { hint: "build it" });
    expect(describeError(error)).toEqual({
      code: "IMAGE_NOT_FOUND",
      message: 'No image "x"',
      hint: "build it",
      httpStatus: 404,
      exitCode: 2,
    });
  });

  test("knows the errors of rooms that import nothing of ours by their code", () => {
    expect(describeError(new QmpError("QMP_TIMEOUT", "Too long"))).toMatchObject({
      code: "QMP_TIMEOUT",
      httpStatus: 504,
    });
  });

  test("takes a full disk for NO_SPACE, wherever it was met", () => {
    for (const code of ["ENOSPC", "EDQUOT"]) {
      expect(describeError(systemError(code))).toMatchObject({ code: "NO_SPACE", httpStatus: 507 });
    }
  });

  test("takes anything else for INTERNAL, and keeps what it says", () => {
    let missing: unknown;
    try {
      mkdirSync("/nowhere/at/all");
    } catch (error) {
      missing = error;
    }
    expect(describeError(missing)).toMatchObject({ code: "INTERNAL", exitCode: 5 });
    expect(describeError(missing).message).toContain("/nowhere/at/all");
    expect(describeError("a string")).toMatchObject({ code: "INTERNAL", message: "a string" });
    expect(describeError(systemError("toString")).code).toBe("INTERNAL");
  });

  test("has an error status for every code", () => {
    for (const [code, entry] of Object.entries(errorCodes)) {
      expect([code, entry.http >= 400, entry.exit > 0]).toEqual([code, true, true]);
    }
  });
});
