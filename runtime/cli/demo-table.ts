import type { StartTimes } from "../fork/child.ts";
import type { ParentOrigin } from "../fork/open-parent.ts";
import type { TaskResult } from "../jobs/run-tasks.ts";
import { distributionOf } from "../stats.ts";
import { formatBytes, formatMs, formatTable } from "./format.ts";

/** One way of rendering all tiles. */
export interface Run {
  results: TaskResult[];
  totalMs: number;
}

const NONE = "-";

/** The figures of the demo: forked children beside cold-booted ones. */
export function demoTable(origin: ParentOrigin, forked: Run, cold: Run | undefined): string {
  const parentBoot = origin.bootMs === undefined ? "none (from disk)" : `${formatMs(origin.bootMs)}, once`;
  const rows = [
    ["boot", parentBoot, cold ? `${spread(cold, (t) => t.answerMs)}, each` : NONE],
    ["freeze pause", origin.pauseMs === undefined ? "none (from disk)" : formatMs(origin.pauseMs), NONE],
    ["descriptor", formatBytes(origin.descriptorBytes), NONE],
    [
      "start to running, p50 / p99",
      spread(forked, (t) => t.shellMs + t.runningMs),
      cold ? spread(cold, (t) => t.runningMs) : NONE,
    ],
    [
      "start to first answer, p50 / p99",
      spread(forked, (t) => t.shellMs + t.answerMs),
      cold ? spread(cold, (t) => t.answerMs) : NONE,
    ],
    ["total, all tiles", formatMs(forked.totalMs), cold ? formatMs(cold.totalMs) : NONE],
  ];
  const table = formatTable([{ title: "" }, { title: "forked" }, { title: "cold boot" }], rows);
  return cold ? `${table}\n\n${summary(forked, cold)}` : table;
}

function summary(forked: Run, cold: Run): string {
  const answer = (run: Run) => distributionOf(timesOf(run).map((t) => t.shellMs + t.answerMs)).p50;
  const faster = Math.round(answer(cold) / answer(forked));
  return `A forked VM answers ${faster} times sooner than one that boots (p50, with all of them at work).`;
}

function spread(run: Run, value: (times: StartTimes) => number): string {
  const { p50, p99 } = distributionOf(timesOf(run).map(value));
  return `${formatMs(p50)} / ${formatMs(p99)}`;
}

function timesOf(run: Run): StartTimes[] {
  return run.results.map((result) => result.times).filter((times) => times !== undefined);
}
