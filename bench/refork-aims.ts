import { type Aim, judged } from "./aims.ts";
import type { ReforkBenchResult } from "./refork.ts";

/** Bytes for each ms that a pause may take for what was written. */
const BYTES_PER_MS = 1_000_000;
const MIB = 1024 * 1024;
/** Written in a re-fork that is held against plain migration. */
const COMPARED_MIB = 16;

/** Holds the figures of a run against the aims; all of them come from that one run. */
export function reforkAims(result: ReforkBenchResult): Aim[] {
  const least = Math.min(...result.dirtied.map(({ mib }) => mib));
  const dirtied = result.dirtied.map(({ mib, gapMs }) => ({
    name: mib === least ? "pause from inside, p50" : `the same after ${mib} MiB were written`,
    value: gapMs.p50,
    below: 20 + (mib === least ? 0 : (mib * MIB) / BYTES_PER_MS),
    unit: "ms" as const,
  }));
  const generations = result.generations.map(({ generation, gapMs }) => ({
    name: `the same of generation ${generation}, 16 MiB written`,
    value: gapMs.p50,
    below: 20 + (16 * MIB) / BYTES_PER_MS,
    unit: "ms" as const,
  }));
  const compared = result.dirtied.find(({ mib }) => mib === COMPARED_MIB);
  const migration =
    compared?.fileMs === undefined
      ? []
      : [
          {
            name: `pause after ${COMPARED_MIB} MiB per plain file migration, p50`,
            value: compared.pauseMs.p50 / compared.fileMs.p50,
            below: 1 / 10,
            unit: "ratio" as const,
          },
        ];
  const { children, allEndedMs } = result.forkCall;
  return judged([
    ...dirtied,
    ...generations,
    ...migration,
    {
      name: `a program's fork(${children}) until all have ended, p50`,
      value: allEndedMs.p50,
      below: 1500,
      unit: "ms",
    },
  ]);
}
