/**
 * Runs each example three ways, all in one run: forked children, one VM that does all of it, and VMs that are booted
 * for a share each. Prints the table of its README. Arguments: names of examples; all by default.
 *
 *     .tools/bun-*\/bun examples/measure.ts [NAME...]
 */

import { resolveImage } from "../guest-agent/image/mod.ts";
import { ColdVm } from "../runtime/fork/cold-vm.ts";
import { VmTree } from "../runtime/fork/family/vm-tree.ts";
import { openParent } from "../runtime/fork/open-parent.ts";
import type { Parent } from "../runtime/fork/parent.ts";
import { flurryHome } from "../runtime/home.ts";
import { taskWarmUp } from "../runtime/jobs/task.ts";
import { Host } from "../runtime/vm/host.ts";
import { EXAMPLES, type Example } from "./examples.ts";

const RUN_MS = 600_000;

/** Seconds of each way. */
interface Measured {
  forked: number;
  alone: number;
  cold: number;
}

async function measure(host: Host, example: Example): Promise<Measured> {
  const image = await resolveImage(flurryHome(), "examples");
  const prepare = ["python3", example.program, "prepare"];
  const { parent } = await openParent({ host, image, memMiB: 512, warmUp: taskWarmUp(prepare) });
  await using _parent = parent;
  await parent.shells.keep(example.children);
  const forked = await timed(() => inTree(parent, example, ["fork", String(example.children)]));
  const alone = await timed(() => inTree(parent, example, ["alone"]));
  if (forked.result !== alone.result) throw new Error(`${forked.result} forked, and ${alone.result} alone`);
  // As many as there are processors at a time: more would only wait for each other.
  const shares = Array.from({ length: host.cores }, (_, index) => index);
  const cold = await timed(async () => {
    await Promise.all(
      shares.map(async (index) => {
        const identity = { index, hostname: `cold-${index}` };
        await using vm = await ColdVm.start({ host, profile: parent.profile, boot: image, identity });
        for (const argv of [
          prepare,
          ["python3", example.program, "share", String(index), String(shares.length)],
        ]) {
          const { code, stderr } = await vm.agent.run(argv, { timeoutMs: RUN_MS });
          if (code !== 0) throw new Error(stderr);
        }
      }),
    );
    return "";
  });
  return { forked: forked.seconds, alone: alone.seconds, cold: cold.seconds };
}

async function timed(run: () => Promise<string>): Promise<{ seconds: number; result: string }> {
  const began = performance.now();
  const result = await run();
  return { seconds: (performance.now() - began) / 1000, result };
}

/** Runs an example in a VM; the line with its result. */
async function inTree(parent: Parent, { program }: Example, args: readonly string[]): Promise<string> {
  await using tree = new VmTree({ place: () => ({ [Symbol.dispose]: () => undefined }) });
  const { child } = await tree.root((node) =>
    parent.fork({ identity: { index: 0, hostname: "example" }, onCall: (call) => node.onCall(call) }),
  );
  const { code, stdout, stderr } = await child.agent.run(["python3", program, ...args], {
    timeoutMs: RUN_MS,
  });
  const result = /^result .*$/m.exec(stdout)?.[0];
  if (code !== 0 || !result) throw new Error(`${program} ${args.join(" ")}: ${stdout}${stderr}`);
  process.stderr.write(`${stdout.trim().split("\n").slice(-3).join("\n")}\n`);
  return result;
}

await using host = await Host.open();
const wanted = process.argv.slice(2);
const rows = ["| | seconds | |", "| --- | --- | --- |"];
for (const example of EXAMPLES.filter(({ name }) => wanted.length === 0 || wanted.includes(name))) {
  process.stderr.write(`${example.name}\n`);
  const { forked, alone, cold } = await measure(host, example);
  const times = (seconds: number) => `${(seconds / forked).toFixed(1)} x`;
  rows.push(
    `| ${example.name}: ${example.children} forked children | ${forked.toFixed(1)} | |`,
    `| one VM does all of it | ${alone.toFixed(1)} | ${times(alone)} |`,
    `| ${host.cores} VMs are booted for it | ${cold.toFixed(1)} | ${times(cold)} |`,
  );
}
process.stdout.write(`${rows.join("\n")}\n`);
