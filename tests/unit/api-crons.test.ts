import { describe, expect, test } from "bun:test";
import { nextCronTime, WorkerSpec } from "../../runtime/api/mod.ts";

const from = Date.UTC(2026, 0, 31, 12);

function next(cron: string, after = from): string {
  return new Date(nextCronTime(cron, after)).toISOString();
}

function wrong(crons: unknown, more: object = { module: { code: "" } }): string | undefined {
  return WorkerSpec.safeParse({ ...more, crons }).error?.issues[0]?.message;
}

describe("nextCronTime()", () => {
  test("is after the time that is given, in UTC, and a whole minute", () => {
    expect(next("* * * * *")).toBe("2026-01-31T12:01:00.000Z");
    expect(next("* * * * *", from - 1)).toBe("2026-01-31T12:00:00.000Z");
    expect(next("* * * * *", from + 59_999)).toBe("2026-01-31T12:01:00.000Z");
    expect(next("0 3 * * *")).toBe("2026-02-01T03:00:00.000Z");
    expect(next("0 9 * * MON-FRI")).toBe("2026-02-02T09:00:00.000Z");
    expect(next("0 0 29 2 *")).toBe("2028-02-29T00:00:00.000Z");
    expect(next("30 1 L * *")).toBe("2026-02-28T01:30:00.000Z");
  });
});

describe("crons of a worker", () => {
  test("are taken as they stand", () => {
    const crons = ["*/5 * * * *", "0 0 1,15 jan-jun *", "0 9 * * MON#1", "15 10-12/2 * * *"];
    expect(WorkerSpec.parse({ module: { code: "" }, crons }).crons).toEqual(crons);
    expect(wrong(Array.from({ length: 16 }, (_, minute) => `${minute} * * * *`))).toBeUndefined();
  });

  test("are refused with what is wrong with them", () => {
    const fields = 'must be five fields with one space between, as "*/5 * * * *"';
    for (const text of [
      "",
      "* * * *",
      "* * * * * *",
      "@daily",
      " * * * * *",
      "*  * * * *",
      "? * * * *",
      "* * * * *\n",
    ])
      expect(wrong([text])).toBe(fields);
    expect(wrong(["60 * * * *"])).toBe("is no time: Invalid value for minute: 60");
    expect(wrong(["*/0 * * * *"])).toContain("illegal stepping: 0");
    expect(wrong(["0 0 30 2 *"])).toBe("names a time that never comes");
    for (const day of ["1", "0-5", "MON,3"]) expect(wrong([`0 9 * * ${day}`])).toContain("MON-FRI");
    expect(wrong(["0 0 * * *", "0 0 * * *"])).toBe("have one twice");
    expect(wrong(Array.from({ length: 17 }, (_, minute) => `${minute} * * * *`))).toContain("16");
    expect(wrong(["* * * * *"], { image: "base", command: ["true"] })).toBe("is for modules");
  });
});
