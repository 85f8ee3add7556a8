import { type Aim, judged } from "./aims.ts";
import type { PagesBenchResult } from "./pages.ts";

/** MB/s that the background should reach, where QEMU itself can. */
const STREAM_MBPS = 500;

/** Holds the figures of a run against the aims; all of them come from that one run. */
export function pagesAims({ faults, streamMBps, children }: PagesBenchResult): Aim[] {
  const possible = Math.min(STREAM_MBPS, streamMBps.qemu.p50);
  const alone = children.find(({ n }) => n === 1) ?? children[0]!;
  const { mapped, lazyWorkingSet } = alone;
  return judged([
    { name: "fault: request to page in place, p50", value: faults.placedUs.p50, below: 150, unit: "us" },
    { name: "fault: of that in the memserver, p50", value: faults.serviceUs.p50, below: 30, unit: "us" },
    {
      name: "background stream: 500 MB/s or QEMU's limit, per measured",
      value: possible / streamMBps.memserver.p50,
      // A run is never exactly what another was.
      below: 1.05,
      unit: "ratio",
    },
    {
      name: "with its working set: faults before the CPUs run",
      value: lazyWorkingSet.faultsBeforeRun.max,
      below: 1,
      unit: "ratio",
    },
    {
      name: "warm short task: share of RAM moved",
      value: lazyWorkingSet.movedShare.max,
      below: 0.1,
      unit: "ratio",
    },
    {
      name: "first answer per that of a mapped child, p50",
      value: lazyWorkingSet.answerMs.p50 / mapped.answerMs.p50,
      below: 2,
      unit: "ratio",
    },
  ]);
}
