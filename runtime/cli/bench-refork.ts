import { Command } from "commander";
import { benchRefork, type ReforkBenchResult, type ReforkFigures } from "../../bench/refork.ts";
import { reforkAims } from "../../bench/refork-aims.ts";
import type { Distribution } from "../stats.ts";
import { Host } from "../vm/host.ts";
import { aimTable } from "./bench-aims.ts";
import { formatBytes, formatMs, formatTable } from "./format.ts";
import { ensureImage } from "./image.ts";
import { positiveInteger } from "./options.ts";
import { Output } from "./output.ts";
import { cliSignal } from "./signal.ts";

const EXAMPLES = `
Examples:
  flurry bench refork
  flurry bench refork --samples 9 --json > refork.json

QEMU's own ways to write a VM into a file stand beside, for the same VM: compare within one run.`;

/** MiB written before a fork. */
const DIRTIED = [0, 1, 16, 128];

interface ReforkOptions {
  samples: number;
  depth: number;
  children: number;
  memory: number;
  json?: boolean;
}

/** `flurry bench refork`: what it costs to fork a VM that goes on. */
export function reforkCommand(): Command {
  return new Command("refork")
    .summary("Measure forks of VMs that go on")
    .description("Measures the pause and the whole of a fork by what was written before, and by generation")
    .option("--samples <n>", "forks for each figure", positiveInteger("--samples"), 5)
    .option("--depth <n>", "generations", positiveInteger("--depth"), 5)
    .option("--children <n>", "children of the fork that a program calls", positiveInteger("--children"), 8)
    .option("--memory <MiB>", "memory of a guest", positiveInteger("--memory"), 512)
    .option("--json", "print one JSON object")
    .addHelpText("after", EXAMPLES)
    .action((options: ReforkOptions) => refork(options));
}

async function refork({ samples, depth, children, memory, json }: ReforkOptions): Promise<void> {
  const signal = cliSignal();
  const output = new Output();
  await using host = await Host.open({ signal });
  const image = await ensureImage("base", { home: host.home, output, signal });
  using progress = output.progress("Measuring");
  const result = await benchRefork({
    ...{ host, image, samples, depth, children, memMiB: memory, signal },
    dirtied: DIRTIED.filter((mib) => mib < memory / 2),
    onProgress: (stage) => progress.describe(stage),
  });
  progress.finish();
  const aims = reforkAims(result);
  output.print(json ? JSON.stringify({ ...result, aims }) : `${reforkTables(result)}\n\n${aimTable(aims)}`);
}

const TIMES = ["from inside", "CPUs stopped", "pause", "to the first answer", "written"];

function reforkTables({ accel, memMiB, dirtied, generations, forkCall }: ReforkBenchResult): string {
  const columns = (titles: string[]) =>
    titles.map((title, index) => ({ title, align: index === 0 ? ("left" as const) : ("right" as const) }));
  const byDirtied = formatTable(
    columns([`p50, ${memMiB} MiB, ${accel}`, ...TIMES, "file migration", "mapped-ram"]),
    dirtied.map((row) => [`${row.mib} MiB`, ...cells(row), median(row.fileMs), median(row.mappedRamMs)]),
  );
  const byGeneration = formatTable(
    columns(["p50, 16 MiB in each", ...TIMES]),
    generations.map((row) => [`generation ${row.generation}`, ...cells(row)]),
  );
  const { children, callMs, allEndedMs } = forkCall;
  const call = formatTable(columns([`fork(${children}) of a program`, "p50", "max"]), [
    ["until it has returned", formatMs(callMs.p50), formatMs(callMs.max)],
    ["until all have ended", formatMs(allEndedMs.p50), formatMs(allEndedMs.max)],
  ]);
  return [byDirtied, byGeneration, call].join("\n\n");
}

function cells({ gapMs, pauseMs, stoppedMs, totalMs, deltaBytes }: ReforkFigures): string[] {
  return [
    ...[gapMs, stoppedMs, pauseMs, totalMs].map((figure) => median(figure)),
    formatBytes(deltaBytes.p50),
  ];
}

function median(figure: Distribution | undefined): string {
  return figure ? formatMs(figure.p50) : "-";
}
