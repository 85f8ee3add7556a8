import { type Aim, judged } from "./aims.ts";
import type { BurstBenchResult } from "./burst.ts";

/** Holds the figures of a run against the aims. */
export function burstAims({ goneMs }: BurstBenchResult): Aim[] {
  return judged([{ name: "answer's end to its VM gone, max", value: goneMs.max, below: 1000, unit: "ms" }]);
}
