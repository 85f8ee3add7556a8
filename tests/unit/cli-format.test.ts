import { describe, expect, test } from "bun:test";
import { formatBytes, formatMs, formatTable } from "../../runtime/cli/format.ts";

describe("formatMs()", () => {
  test.each([
    [0, "0 ms"],
    [0.4249, "0.42 ms"],
    [9.999, "10 ms"],
    [38.04, "38 ms"],
    [99.96, "100 ms"],
    [999.4, "999 ms"],
    [999.6, "1 s"],
    [4120, "4.1 s"],
    [59_949, "59.9 s"],
    [59_950, "1 min"],
    [125_000, "2 min 5 s"],
  ])("writes %d as %s", (ms, text) => {
    expect(formatMs(ms)).toBe(text);
  });
});

describe("formatBytes()", () => {
  test.each([
    [0, "0 B"],
    [1023, "1023 B"],
    [1024, "1 KiB"],
    [71_680, "70 KiB"],
    [1_048_575, "1 MiB"],
    [1.5 * 2 ** 30, "1.5 GiB"],
    [512 * 2 ** 20, "512 MiB"],
    [2 ** 51, "2048 TiB"],
  ])("writes %d as %s", (bytes, text) => {
    expect(formatBytes(bytes)).toBe(text);
  });
});

describe("formatTable()", () => {
  test("aligns columns and leaves no blanks at the end of a line", () => {
    const table = formatTable(
      [{ title: "step" }, { title: "time", align: "right" }],
      [
        ["boot", "4.1 s"],
        ["freeze", "2 ms"],
      ],
    );
    expect(table).toBe("step     time\nboot    4.1 s\nfreeze   2 ms");
  });

  test("leaves out the line of titles when all are empty", () => {
    expect(formatTable([{ title: "" }, { title: "" }], [["a", "b"]])).toBe("a  b");
  });
});
