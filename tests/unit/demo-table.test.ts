import { describe, expect, test } from "bun:test";
import { demoTable, type Run } from "../../runtime/cli/demo-table.ts";
import type { ParentOrigin } from "../../runtime/fork/open-parent.ts";

const accel = { accel: "tcg", reason: "there is no /dev/kvm", key: "" } as const;
const booted: ParentOrigin = {
  cached: false,
  accel,
  descriptorBytes: 24_576,
  bootMs: 4000,
  warmUpMs: 100,
  pauseMs: 2.5,
  keepMs: 300,
};

/** A run of tasks that answered after so many milliseconds. */
function runOf(answers: readonly number[], warm: boolean): Run {
  return {
    totalMs: 9000,
    results: answers.map((answerMs, index) => ({
      index,
      state: "succeeded",
      totalMs: answerMs,
      times: { warm, shellMs: 1, runningMs: answerMs / 10, answerMs },
    })),
  };
}

describe("demoTable()", () => {
  test("sets forked VMs beside cold-booted ones", () => {
    const table = demoTable(booted, runOf([99, 199, 99], true), runOf([3999, 7999, 3999], false));
    expect(table.split("\n")).toEqual([
      "                                  3 forked VMs       3 cold-booted VMs",
      "boot                              once, 4 s          3 times",
      "freeze pause                      2.5 ms             -",
      "descriptor                        24 KiB             -",
      "start to running, p50 / p99       10.9 ms / 20.9 ms  401 ms / 801 ms",
      "start to first answer, p50 / p99  100 ms / 200 ms    4 s / 8 s",
      "total                             9 s                9 s",
      "",
      "A forked VM answers 40 times sooner than one that boots (p50, with all of them at work).",
    ]);
  });

  test("leaves out what was not done", () => {
    const { bootMs: _boot, pauseMs: _pause, ...rest } = booted;
    const table = demoTable({ ...rest, cached: true }, runOf([99], true), undefined);
    expect(table.split("\n").slice(0, 3)).toEqual([
      "                                  1 forked VM",
      "boot                              none (parent from disk)",
      "freeze pause                      none (parent from disk)",
    ]);
    expect(table).not.toContain("cold");
  });
});
