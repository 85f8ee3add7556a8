import type { GatewayBenchResult } from "../../bench/gateway.ts";
import type { RequestFigures } from "../../bench/gateway-http.ts";
import type { JobBenchResult } from "../../bench/gateway-job.ts";
import type { Distribution } from "../stats.ts";
import { formatMs, formatTable } from "./format.ts";

const right = "right" as const;

/** The figures of `flurry bench gateway` as text. */
export function gatewayTables({ runtime, http, job }: GatewayBenchResult): string {
  const rows = (["submit", "read"] as const).flatMap((kind) =>
    Object.entries(http[kind]).map(([concurrency, figures]) =>
      requestRow(`${kind}, ${concurrency} at a time`, figures),
    ),
  );
  const columns = [
    runtime,
    "req/s",
    "p50",
    "p99",
    "bare req/s",
    "bare p50",
    "added p50",
    "added p99",
    "ratio",
  ];
  const requests = formatTable(
    columns.map((title, index) => ({ title, align: index === 0 ? ("left" as const) : right })),
    rows,
  );
  const { tasks, tasksPerSecond } = http.scripted;
  const scripted = `${tasks} tasks without VMs: ${tasksPerSecond.toFixed(0)} tasks/s`;
  return [requests, scripted, ...(job ? [jobTable(job)] : [])].join("\n\n");
}

function requestRow(name: string, { requestsPerSecond, latencyMs, bare, addedMs, ratio }: RequestFigures) {
  return [
    name,
    requestsPerSecond.toFixed(0),
    formatMs(latencyMs.p50),
    formatMs(latencyMs.p99),
    bare.requestsPerSecond.toFixed(0),
    formatMs(bare.latencyMs.p50),
    formatMs(addedMs.p50),
    formatMs(addedMs.p99),
    ratio.toFixed(1),
  ];
}

function jobTable({ accel, cores, slots, tasks, failed, seconds, tasksPerSecond, ...times }: JobBenchResult) {
  const { waitMs, forkMs, identifyMs, runMs, recordMs } = times.steps;
  const row = (name: string, d: Distribution) => [name, formatMs(d.p50), formatMs(d.p99), formatMs(d.max)];
  const rows = [
    row("submit to result", times.submitToResultMs),
    row("  wait for the tasks before", waitMs),
    row("  fork", forkMs),
    row("  identify", identifyMs),
    row("  run", runMs),
    row("  record", recordMs),
  ];
  const title = `${accel}, ${cores} cores, ${slots} children at a time`;
  const columns = [title, "p50", "p99", "max"].map((each, index) => ({
    title: each,
    align: index === 0 ? ("left" as const) : right,
  }));
  const summary = `${tasks} tasks in forked VMs: ${tasksPerSecond.toFixed(1)} tasks/s, ${seconds.toFixed(1)} s, ${failed} failed`;
  return `${summary}\n${formatTable(columns, rows)}`;
}
