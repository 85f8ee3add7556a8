import { type Aim, judged } from "./aims.ts";
import type { ForkBenchResult } from "./fork.ts";

const MB = 1_000_000;

/** Holds the figures of a run against the aims; all of them come from that one run. */
export function forkAims(result: ForkBenchResult): Aim[] {
  const { forkRunningMs, bareQemuStartMs, coldBootMs, forkAnswerMs, barePrivateBytes } = result;
  return judged([
    { name: "pause, p50", value: result.pauseMs.p50, below: 5, unit: "ms" },
    { name: "descriptor", value: result.descriptorBytes, below: 100_000, unit: "bytes" },
    { name: "fork to running, warm shell, p50", value: forkRunningMs.warm.p50, below: 10, unit: "ms" },
    {
      name: "fork to running, cold shell, p50, per bare QEMU start",
      value: forkRunningMs.cold.p50 / bareQemuStartMs.p50,
      below: 1.4,
      unit: "ratio",
    },
    {
      name: `${result.n} children running, warm shells`,
      value: result.allRunningMs,
      below: 1000,
      unit: "ms",
    },
    {
      name: "fork to first answer, p50, per cold boot",
      value: forkAnswerMs.warm.p50 / coldBootMs.p50,
      below: 1 / 50,
      unit: "ratio",
    },
    { name: "identity of it, p50", value: result.identifyMs.totalMs.p50, below: 15, unit: "ms" },
    {
      name: "private memory of an idle child above a bare QEMU's, p50",
      value: result.privateBytesPerChild.p50 - barePrivateBytes.p50,
      below: 6 * MB,
      unit: "bytes",
    },
  ]);
}
