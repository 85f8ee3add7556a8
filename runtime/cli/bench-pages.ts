import type { PagesBenchResult } from "../../bench/pages.ts";
import type { ChildrenFigures, LazyFigures } from "../../bench/pages-children.ts";
import type { FaultFigures, GuestFaults } from "../../bench/pages-faults.ts";
import type { StreamFigures } from "../../bench/pages-stream.ts";
import { formatMs, formatTable } from "./format.ts";

const right = "right" as const;

/** The figures of `flurry bench pages` as text. */
export function pagesTables({
  qemu,
  accel,
  cores,
  memMiB,
  faults,
  streamMBps,
  children,
}: PagesBenchResult): string {
  const machine = `${accel}, ${cores} cores, ${memMiB} MiB`;
  const rows = children.flatMap(({ n, mapped, lazy, lazyWorkingSet }) => [
    childrenRow(`${n} at once, mapped`, mapped),
    lazyRow(`${n} at once, lazy`, lazy),
    lazyRow(`${n} at once, lazy with working set`, lazyWorkingSet),
  ]);
  return [
    qemu,
    faultTable(machine, faults),
    streamTable(streamMBps),
    table(
      ["children", "answer p50", "result p50", "result p99", "all", "faults p50", "before run", "RAM moved"],
      rows,
    ),
  ].join("\n\n");
}

function faultTable(machine: string, { serviceUs, placedUs, guestUs }: FaultFigures): string {
  const us = (value: number) => `${value < 10 ? value.toFixed(1) : value.toFixed(0)} µs`;
  const row = (name: string, { p50, p99, max }: { p50: number; p99: number; max: number }) => [
    name,
    us(p50),
    us(p99),
    us(max),
  ];
  const guest = (name: string, faults: GuestFaults) => row(`guest's read, ${name}`, faults);
  return table(
    [machine, "p50", "p99", "max"],
    [
      row("in the memserver: request to write", serviceUs),
      row("request to page in place", placedUs),
      guest("mapped", guestUs.mapped),
      guest("lazy", guestUs.lazy),
      guest("lazy, second connection", guestUs.lazyPreempt),
      guest("lazy, while the rest is pushed", guestUs.pushed),
      guest("the same, second connection", guestUs.pushedPreempt),
    ],
  );
}

function streamTable({ memserver, qemu }: StreamFigures): string {
  const row = (name: string, { p50, max }: { p50: number; max: number }) => [
    name,
    p50.toFixed(0),
    max.toFixed(0),
  ];
  return table(
    ["whole image, MB/s", "p50", "max"],
    [row("from the memserver", memserver), row("made beforehand: QEMU's limit", qemu)],
  );
}

function childrenRow(name: string, { answerMs, resultMs, allMs }: ChildrenFigures): string[] {
  return [
    name,
    formatMs(answerMs.p50),
    formatMs(resultMs.p50),
    formatMs(resultMs.p99),
    formatMs(allMs),
    "",
    "",
    "",
  ];
}

function lazyRow(name: string, figures: LazyFigures): string[] {
  const { faults, faultsBeforeRun, movedShare } = figures;
  return [
    ...childrenRow(name, figures).slice(0, 5),
    faults.p50.toFixed(0),
    faultsBeforeRun.max.toFixed(0),
    `${(movedShare.p50 * 100).toFixed(1)} %`,
  ];
}

function table(columns: readonly string[], rows: readonly string[][]): string {
  return formatTable(
    columns.map((title, index) => ({ title, align: index === 0 ? ("left" as const) : right })),
    rows,
  );
}
