import { Command } from "commander";
import { benchBurst } from "../../bench/burst.ts";
import { burstAims } from "../../bench/burst-aims.ts";
import { benchFork, type ForkBenchResult } from "../../bench/fork.ts";
import { forkAims } from "../../bench/fork-aims.ts";
import { benchGateway } from "../../bench/gateway.ts";
import { benchPages } from "../../bench/pages.ts";
import { pagesAims } from "../../bench/pages-aims.ts";
import { FlurryError } from "../../errors/errors.ts";
import type { Distribution } from "../stats.ts";
import { Host } from "../vm/host.ts";
import { aimTable } from "./bench-aims.ts";
import { burstTable } from "./bench-burst.ts";
import { gatewayTables } from "./bench-gateway.ts";
import { identityCommand } from "./bench-identity.ts";
import { pagesTables } from "./bench-pages.ts";
import { reforkCommand } from "./bench-refork.ts";
import { formatBytes, formatMs, formatTable } from "./format.ts";
import { ensureImage } from "./image.ts";
import { positiveInteger } from "./options.ts";
import { Output } from "./output.ts";
import { cliSignal } from "./signal.ts";
import { wholeNumber } from "./worker-spec.ts";

interface ForkOptions {
  n: number;
  memory: number;
  boots: number;
  json?: boolean;
}

const FORK_EXAMPLES = `
Examples:
  flurry bench fork
  flurry bench fork --n 64 --json > fork.json

Under TCG the figures depend on what else the machine does: compare within one run.`;

interface GatewayBenchOptions {
  requests: number;
  tasks: number;
  scripted: number;
  json?: boolean;
}

const GATEWAY_EXAMPLES = `
Examples:
  flurry bench gateway
  flurry bench gateway --tasks 0                  without VMs
  flurry bench gateway --json > gateway.json

A bare server of the same runtime is asked in turn with the gateway: compare within one run.`;

interface BurstOptions extends ForkOptions {
  alone: number;
}

const BURST_EXAMPLES = `
Examples:
  flurry bench burst
  flurry bench burst --n 64 --json > burst.json

The same app answers on plain Bun on the host, and in VMs that are booted for it: compare within one run.`;

interface PagesOptions {
  n: number;
  memory: number;
  filled: number;
  touches: number;
  samples: number;
  json?: boolean;
}

const PAGES_EXAMPLES = `
Examples:
  flurry bench pages
  flurry bench pages --n 8 --json > pages.json

Children that get their memory page by page stand beside such whose memory is mapped, and the stream
beside what QEMU takes at most: compare within one run.`;

/** `flurry bench fork|refork|pages|gateway|burst|identity`: what forks, page service and the gateway cost on this machine. */
export function benchCommand(): Command {
  const command = new Command("bench").description("Measures Flurry on this machine");
  command
    .command("fork")
    .summary("Measure boot, freeze and fork")
    .description("Measures boot, freeze and fork: times round the real operations, and memory")
    .option("--n <n>", "number of children", positiveInteger("--n"), 32)
    .option("--memory <MiB>", "memory of a guest", positiveInteger("--memory"), 512)
    .option("--boots <n>", "VMs to boot and freeze", positiveInteger("--boots"), 5)
    .option("--json", "print one JSON object")
    .addHelpText("after", FORK_EXAMPLES)
    .action((options: ForkOptions) => fork(options));
  command
    .command("pages")
    .summary("Measure children that get their memory page by page")
    .description("Measures page faults, the background stream and the start of lazy children")
    .option("--n <n>", "most children at once; 1 and 8 are measured too", positiveInteger("--n"), 32)
    .option("--memory <MiB>", "memory of a guest", positiveInteger("--memory"), 512)
    .option(
      "--filled <MiB>",
      "how much of it is filled, to be touched and streamed",
      positiveInteger("--filled"),
      128,
    )
    .option("--touches <n>", "pages touched for each figure", positiveInteger("--touches"), 8192)
    .option("--samples <n>", "least children of each kind for a figure", positiveInteger("--samples"), 16)
    .option("--json", "print one JSON object")
    .addHelpText("after", PAGES_EXAMPLES)
    .action((options: PagesOptions) => pages(options));
  command
    .command("gateway")
    .summary("Measure the gateway: requests, and tasks from end to end")
    .description("Measures what the gateway adds to HTTP, and how fast short tasks go through real children")
    .option("--requests <n>", "requests of each kind", positiveInteger("--requests"), 2000)
    .option("--tasks <n>", "tasks in forked VMs; 0 for none", wholeNumber("--tasks"), 200)
    .option("--scripted <n>", "tasks without VMs", positiveInteger("--scripted"), 2000)
    .option("--json", "print one JSON object")
    .addHelpText("after", GATEWAY_EXAMPLES)
    .action((options: GatewayBenchOptions) => gateway(options));
  command
    .command("burst")
    .summary("Measure a burst of requests to a JS worker")
    .description("Measures a step from no request to many, answered by forks, shared forks and booted VMs")
    .option("--n <n>", "requests at once", positiveInteger("--n"), 16)
    .option("--memory <MiB>", "memory of a guest", positiveInteger("--memory"), 512)
    .option("--boots <n>", "VMs to boot for one request each", positiveInteger("--boots"), 3)
    .option("--alone <n>", "requests of each kind that come alone", positiveInteger("--alone"), 20)
    .option("--json", "print one JSON object")
    .addHelpText("after", BURST_EXAMPLES)
    .action((options: BurstOptions) => burst(options));
  return command.addCommand(identityCommand()).addCommand(reforkCommand());
}

async function burst({ n, memory, boots, alone, json }: BurstOptions): Promise<void> {
  const signal = cliSignal();
  const output = new Output();
  using progress = output.progress("Measuring");
  const result = await benchBurst({
    ...{ n, memMiB: memory, boots, alone, signal },
    onProgress: (stage) => progress.describe(stage),
  });
  progress.finish();
  const aims = burstAims(result);
  output.print(json ? JSON.stringify({ ...result, aims }) : `${burstTable(result)}\n\n${aimTable(aims)}`);
}

async function fork(options: ForkOptions): Promise<void> {
  const signal = cliSignal();
  // The one JSON object of --json stands alone on stdout, so progress goes to stderr there too.
  const output = new Output();
  await using host = await Host.open({ signal });
  const image = await ensureImage("base", { home: host.home, output, signal });
  using progress = output.progress("Measuring");
  const result = await benchFork({
    host,
    image,
    n: options.n,
    memMiB: options.memory,
    boots: options.boots,
    onProgress: (stage) => progress.describe(stage),
    signal,
  });
  progress.finish();
  const aims = forkAims(result);
  output.print(
    options.json ? JSON.stringify({ ...result, aims }) : `${resultTable(result)}\n\n${aimTable(aims)}`,
  );
}

async function pages({ n, memory, filled, touches, samples, json }: PagesOptions): Promise<void> {
  const signal = cliSignal();
  if (filled * 256 < touches) {
    throw new FlurryError(
      "BAD_ARGUMENT",
      `--touches ${touches} are more pages than --filled ${filled} MiB has`,
    );
  }
  const output = new Output();
  await using host = await Host.open({ signal });
  const image = await ensureImage("base", { home: host.home, output, signal });
  using progress = output.progress("Measuring");
  const result = await benchPages({
    host,
    image,
    memMiB: memory,
    filledMiB: filled,
    touches,
    streams: 5,
    samples,
    children: [...new Set([1, 8, n])].filter((count) => count <= n).sort((a, b) => a - b),
    onProgress: (stage) => progress.describe(stage),
    signal,
  });
  progress.finish();
  const aims = pagesAims(result);
  output.print(json ? JSON.stringify({ ...result, aims }) : `${pagesTables(result)}\n\n${aimTable(aims)}`);
}

async function gateway({ requests, tasks, scripted, json }: GatewayBenchOptions): Promise<void> {
  // As above: the one JSON object stands alone on stdout.
  const output = new Output();
  using progress = output.progress("Measuring");
  const result = await benchGateway({
    requests,
    tasks,
    scriptedTasks: scripted,
    onProgress: (stage) => progress.describe(stage),
    signal: cliSignal(),
  });
  progress.finish();
  output.print(json ? JSON.stringify(result) : gatewayTables(result));
}

function resultTable(result: ForkBenchResult): string {
  const time = (name: string, d: Distribution) => [name, formatMs(d.p50), formatMs(d.p99), formatMs(d.max)];
  const size = (name: string, d: Distribution) => [
    name,
    formatBytes(d.p50),
    formatBytes(d.p99),
    formatBytes(d.max),
  ];
  const rows = [
    time("cold boot to first answer", result.coldBootMs),
    time("bare QEMU start", result.bareQemuStartMs),
    time("freeze pause", result.pauseMs),
    time("shell start", result.shellStartMs),
    time("fork to running, warm shell", result.forkRunningMs.warm),
    time("fork to running, cold shell", result.forkRunningMs.cold),
    time("fork to first answer, warm shell", result.forkAnswerMs.warm),
    time("fork to first answer, cold shell", result.forkAnswerMs.cold),
    time("identity of it: kernel and files", result.identifyMs.kernelMs),
    time("identity of it: with fork hooks", result.identifyMs.totalMs),
    size("private memory of a bare QEMU", result.barePrivateBytes),
    size("private memory of an idle child", result.privateBytesPerChild),
    [`${result.n} children at once, all running`, formatMs(result.allRunningMs)],
    [`${result.n} children at once, all answered`, formatMs(result.allAnsweredMs)],
    ["descriptor", formatBytes(result.descriptorBytes)],
    ["failed forks", String(result.failures)],
  ];
  const columns = [
    { title: `${result.accel}, ${result.cores} cores, ${result.memMiB} MiB` },
    { title: "p50", align: "right" as const },
    { title: "p99", align: "right" as const },
    { title: "max", align: "right" as const },
  ];
  return `${result.qemu}\n${formatTable(columns, rows)}`;
}
