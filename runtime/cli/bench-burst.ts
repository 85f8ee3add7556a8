import { type BurstBenchResult, bytesEach, timesSooner } from "../../bench/burst.ts";
import type { Distribution } from "../stats.ts";
import { formatBytes, formatMs, formatTable } from "./format.ts";

/** The figures of `flurry bench burst` as text. */
export function burstTable(result: BurstBenchResult): string {
  const { accel, cores, slots, n, request, ahead, alone, goneMs, shared, host, cold } = result;
  const row = (name: string, d: Distribution, errors: number, children: string, bytes: string) => {
    return [name, formatMs(d.p50), formatMs(d.p99), String(errors), children, bytes];
  };
  const bytes = (figures: { privateBytes: number }) => formatBytes(figures.privateBytes);
  const rows = [
    row("a fork for each request", request.ttfbMs, request.errors, String(request.children), bytes(request)),
    row(
      "the same, some of them made ahead",
      ahead.ttfbMs,
      ahead.errors,
      String(ahead.children),
      bytes(ahead),
    ),
    row("forks that serve many", shared.ttfbMs, shared.errors, String(shared.children), bytes(shared)),
    row("plain Bun on the host", host.ttfbMs, host.errors, "", ""),
    row("a fork made for a request alone", alone.forked, 0, "", ""),
    row("a fork made ahead of a request alone", alone.ahead, 0, "", ""),
    row("a booted VM, one by one", cold.ttfbMs, 0, String(cold.boots), bytes(cold)),
  ];
  const title = `${n} requests at once (${accel}, ${cores} cores, ${slots} at a time)`;
  const columns = [title, "first byte p50", "p99", "errors", "VMs", "private memory"].map((each, index) => ({
    title: each,
    align: index === 0 ? ("left" as const) : ("right" as const),
  }));
  const each = formatBytes(bytesEach(result));
  const sooner = timesSooner(result).toFixed(1);
  return `${formatTable(columns, rows)}\n\nHalf of a burst is answered ${sooner} times sooner than one request by a booted VM; a fork has ${each} of its own, and is gone ${formatMs(goneMs.p50)} (p99 ${formatMs(goneMs.p99)}) after its answer`;
}
