/**
 * Forks a VM that goes on, five times as many VMs as it says, and dies at one step of it: before it when the argument
 * is `-STEP`, after it when it is `+STEP`; of steps that children have, at the second child's. Writes a line with the
 * ids of its QEMU processes before.
 */

import { writeSync } from "node:fs";
import { AgentClient } from "../../guest-agent/protocol/mod.ts";
import { QmpClient } from "../../qmp/mod.ts";
import { Generation } from "../../runtime/fork/generation.ts";
import { RamMapping } from "../../runtime/fork/ram-mapping.ts";
import { Host } from "../../runtime/vm/host.ts";
import { processesOf } from "../../runtime/vm/owner.ts";
import { Shell } from "../../runtime/vm/shell.ts";
import { pythonParent, pythonTree } from "./forked-trees.ts";

const [at = ""] = process.argv.slice(2);
await using host = await Host.open();
let begun = false;
let left = 2;

function die(): void {
  writeSync(1, `${JSON.stringify(processesOf(host.owner.run))}\n`);
  process.kill(process.pid, "SIGKILL");
}

/** Passes a step, or does not. @param isOfChild - whether each child has it */
function pass(when: "-" | "+", step: string, isOfChild: boolean): void {
  if (!begun || `${when}${step}` !== at) return;
  if (isOfChild) left -= 1;
  if (!isOfChild || left === 0) die();
}

type Method = (...args: unknown[]) => unknown;

function watch(
  prototype: object,
  name: string,
  isOfChild = false,
  stepOf?: (...args: never[]) => string,
): void {
  const methods = prototype as Record<string, Method>;
  const original = methods[name]!;
  methods[name] = function (this: unknown, ...args: unknown[]) {
    const step = stepOf ? stepOf(...(args as never[])) : name;
    pass("-", step, isOfChild);
    const result = Reflect.apply(original, this, args);
    if (!(result instanceof Promise)) {
      pass("+", step, isOfChild);
      return result;
    }
    return result.then((value) => {
      pass("+", step, isOfChild);
      return value;
    });
  };
}

watch(AgentClient.prototype, "quiesce");
watch(QmpClient.prototype, "execute", false, (command: string) => command);
watch(RamMapping.prototype, "changed");
watch(AgentClient.prototype, "release", false);
watch(Shell.prototype, "load", true);
watch(AgentClient.prototype, "identify", true);
watch(Generation.prototype, "fork", true);

await using parent = await pythonParent(host);
await parent.shells.keep(2);
await using python = await pythonTree(parent);
begun = true;
const out = await python.run(`
_, me, ticket, _ = c.words("fork 5")
if me != "0": c.exit(0)
say(len(c.join(ticket)))
`);
process.stdout.write(`survived ${out}`);
