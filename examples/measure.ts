/**
 * Runs each example three ways in turns: forked children, one VM that does all of it, and VMs that are booted for a
 * share each. Prints the tables of the READMEs, with the medians. Arguments: names of examples; all by default.
 *
 *     .tools/bun-*\/bun examples/measure.ts [--rounds N] [NAME...]
 */

import { cpus, loadavg } from "node:os";
import { parseArgs } from "node:util";
import { resolveImage } from "../guest-agent/image/mod.ts";
import { ColdVm } from "../runtime/fork/cold-vm.ts";
import { VmTree } from "../runtime/fork/family/vm-tree.ts";
import { type GuestImage, openParent } from "../runtime/fork/open-parent.ts";
import type { Parent } from "../runtime/fork/parent.ts";
import { flurryHome } from "../runtime/home.ts";
import { taskWarmUp } from "../runtime/jobs/task.ts";
import { Host } from "../runtime/vm/host.ts";
import { EXAMPLES, type Example } from "./examples.ts";

const RUN_MS = 600_000;

async function measure(host: Host, image: GuestImage, example: Example, rounds: number): Promise<string> {
  const { children = host.cores, ends = [] } = example;
  const warmUp = taskWarmUp(["python3", example.program, "prepare"]);
  const opened = await timed(() => openParent({ host, image, memMiB: 512, warmUp, fresh: true }));
  await using parent = opened.value.parent;
  await parent.shells.keep(children);
  const [forked, alone, cold]: [number[], number[], number[]] = [[], [], []];
  for (let round = 0; round < rounds; round++) {
    const byForks = await timed(() => inTree(parent, example, ["fork", String(children), ...ends]));
    const byOne = await timed(() => inTree(parent, example, ["alone", ...ends]));
    if (byForks.value !== byOne.value) throw new Error(`${byForks.value} forked, and ${byOne.value} alone`);
    forked.push(byForks.seconds);
    alone.push(byOne.seconds);
    cold.push((await timed(() => inColdVms(parent, image, example, children))).seconds);
  }
  const row = (what: string, times: readonly number[]) =>
    `| ${what} | ${median(times).toFixed(1)} s | ${(median(times) / median(forked)).toFixed(1)} x |`;
  return [
    `| ${example.name} | median of ${rounds} | |`,
    "| --- | --- | --- |",
    row(`${children} children that the program forks`, forked),
    row("one VM does all of it", alone),
    row(`${children} VMs are booted for a share each`, cold),
    `| before: boot, prepare and freeze the parent, once | ${opened.seconds.toFixed(1)} s | |`,
  ].join("\n");
}

/** Runs an example in a VM that is forked of the parent; the line with its result. */
async function inTree(parent: Parent, { program }: Example, args: readonly string[]): Promise<string> {
  await using tree = new VmTree({ place: () => ({ [Symbol.dispose]: () => undefined }) });
  const { child } = await tree.root((node) =>
    parent.fork({ identity: { index: 0, hostname: "example" }, onCall: (call) => node.onCall(call) }),
  );
  const run = await child.agent.run(["python3", program, ...args], { timeoutMs: RUN_MS });
  const result = /^result .*$/m.exec(run.stdout)?.[0];
  if (run.code !== 0 || !result) throw new Error(`${program} ${args.join(" ")}: ${run.stdout}${run.stderr}`);
  return result;
}

/** Boots VMs that do a share each, all at once, as the children do. */
async function inColdVms({ host, profile }: Parent, image: GuestImage, example: Example, count: number) {
  const { program, ends = [], isRace = false } = example;
  const won = new AbortController();
  const share = async (index: number) => {
    const identity = { index, hostname: `cold-${index}` };
    await using vm = await ColdVm.start({ host, profile, boot: image, identity, signal: won.signal });
    const argv = ["python3", program, "share", String(index), String(count), ...ends];
    const { code, stdout, stderr } = await vm.agent.run(argv, { timeoutMs: RUN_MS, signal: won.signal });
    if (code !== 0) throw new Error(`${argv.join(" ")}: ${stderr}`);
    if (isRace && stdout.startsWith("found")) won.abort();
  };
  const ended = await Promise.allSettled(Array.from({ length: count }, (_, index) => share(index)));
  const failed = ended.find(({ status }) => status === "rejected");
  if (failed?.status === "rejected" && !won.signal.aborted) throw failed.reason;
}

async function timed<T>(run: () => Promise<T>): Promise<{ seconds: number; value: T }> {
  const began = performance.now();
  const value = await run();
  return { seconds: (performance.now() - began) / 1000, value };
}

function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)]!;
}

const { values, positionals } = parseArgs({
  options: { rounds: { type: "string", default: "3" } },
  allowPositionals: true,
});
await using host = await Host.open();
const image = await resolveImage(flurryHome(), "examples");
process.stdout.write(`${cpus()[0]?.model}, ${host.cores} processors, load ${loadavg()[0]?.toFixed(1)}\n`);
for (const example of EXAMPLES) {
  if (positionals.length > 0 && !positionals.includes(example.name)) continue;
  process.stdout.write(`\n${await measure(host, image, example, Number(values.rounds))}\n`);
}
