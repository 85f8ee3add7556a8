import { Command } from "commander";
import { benchIdentity, type IdentityBenchResult } from "../../bench/identity.ts";
import type { Distribution } from "../stats.ts";
import { Host } from "../vm/host.ts";
import { formatMs, formatTable } from "./format.ts";
import { positiveInteger } from "./options.ts";
import { Output } from "./output.ts";
import { cliSignal } from "./signal.ts";

const EXAMPLES = `
Examples:
  flurry bench identity
  flurry bench identity --n 64 --json > identity.json

Ends with 1 if two children have drawn the same.`;

/** `flurry bench identity`: whether children of one parent are different in all that must differ. */
export function identityCommand(): Command {
  return new Command("identity")
    .summary("Compare what children of one parent draw")
    .description("Draws from every random generator in every child, and counts what came twice")
    .option("--n <n>", "number of children", positiveInteger("--n"), 64)
    .option("--memory <MiB>", "memory of a guest", positiveInteger("--memory"), 256)
    .option("--json", "print one JSON object")
    .addHelpText("after", EXAMPLES)
    .action((options: { n: number; memory: number; json?: boolean }) => identity(options));
}

async function identity({ n, memory, json }: { n: number; memory: number; json?: boolean }): Promise<void> {
  const signal = cliSignal();
  const output = new Output();
  await using host = await Host.open({ signal });
  using progress = output.progress("Measuring");
  const result = await benchIdentity({
    ...{ host, n, memMiB: memory, signal },
    onProgress: (stage) => progress.describe(stage),
  });
  progress.finish();
  output.print(json ? JSON.stringify(result) : identityTables(result));
  if (result.sources.some(({ collisions }) => collisions > 0)) process.exitCode = 1;
}

function identityTables({ accel, n, sources, identifyMs }: IdentityBenchResult): string {
  const rows = sources.map(({ source, draws, collisions }) => [source, String(draws), String(collisions)]);
  const columns = [
    { title: `source (${n} children, ${accel})` },
    { title: "draws", align: "right" as const },
    { title: "collisions", align: "right" as const },
  ];
  const time = (name: string, d: Distribution) => [name, formatMs(d.p50), formatMs(d.p99), formatMs(d.max)];
  const times = [
    time("the kernel's identity", identifyMs.kernel),
    time("renewal of the worker", identifyMs.hooks),
    time("both", identifyMs.total),
  ];
  const timeColumns = ["in the guest", "p50", "p99", "max"].map((title, index) => ({
    title,
    align: index === 0 ? ("left" as const) : ("right" as const),
  }));
  return `${formatTable(columns, rows)}\n\n${formatTable(timeColumns, times)}`;
}
