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
const NOT_NOW = "none (parent from disk)";

/** The figures of the demo: forked children, and cold-booted ones beside them if there were any. */
export function demoTable(origin: ParentOrigin, forked: Run, cold: Run | undefined): string {
  const { bootMs, pauseMs, descriptorBytes } = origin;
  const rows: [label: string, forked: string, cold: (run: Run) => string][] = [
    ["boot", bootMs === undefined ? NOT_NOW : `once, ${formatMs(bootMs)}`, (run) => times(run)],
    ["freeze pause", pauseMs === undefined ? NOT_NOW : formatMs(pauseMs), () => NONE],
    ["descriptor", formatBytes(descriptorBytes), () => NONE],
    ["start to running, p50 / p99", spread(forked, runningMs), (run) => spread(run, runningMs)],
    ["start to first answer, p50 / p99", spread(forked, answerMs), (run) => spread(run, answerMs)],
    ["total", formatMs(forked.totalMs), (run) => formatMs(run.totalMs)],
  ];
  const columns = [{ title: "" }, { title: `${forked.results.length} forked ${vms(forked)}` }];
  if (!cold)
    return formatTable(
      columns,
      rows.map(([label, value]) => [label, value]),
    );
  const table = formatTable(
    [...columns, { title: `${cold.results.length} cold-booted ${vms(cold)}` }],
    rows.map(([label, value, coldValue]) => [label, value, coldValue(cold)]),
  );
  return `${table}\n\n${summary(forked, cold)}`;
}

function vms(run: Run): string {
  return run.results.length === 1 ? "VM" : "VMs";
}

function times(run: Run): string {
  return run.results.length === 1 ? "once" : `${run.results.length} times`;
}

function summary(forked: Run, cold: Run): string {
  const answer = (run: Run) => distributionOf(timesOf(run).map(answerMs)).p50;
  const faster = Math.round(answer(cold) / answer(forked));
  return `A forked VM answers ${faster} times sooner than one that boots (p50, with all of them at work).`;
}

function runningMs(times: StartTimes): number {
  return times.shellMs + times.runningMs;
}

function answerMs(times: StartTimes): number {
  return times.shellMs + times.answerMs;
}

function spread(run: Run, value: (times: StartTimes) => number): string {
  const { p50, p99 } = distributionOf(timesOf(run).map(value));
  return `${formatMs(p50)} / ${formatMs(p99)}`;
}

function timesOf(run: Run): StartTimes[] {
  return run.results.map((result) => result.times).filter((times) => times !== undefined);
}
