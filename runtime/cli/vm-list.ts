import { Command } from "commander";
import { type GatewayOptions, gatewayClient, gatewayOptions } from "./gateway-client.ts";
import { Output } from "./output.ts";
import { vmTable, vmTreeTable } from "./vm-tree.ts";

const EXAMPLES = `
Examples:
  flurry vm ls
  flurry vm ls --tree
  flurry vm ls --json

PRIVATE is the memory of the host that is this VM's alone: what it has written since it was forked.`;

/** `flurry vm ls`. */
export function listCommand(): Command {
  const command = new Command("ls")
    .summary("List the VMs that run, as a tree if you like")
    .description("Lists VMs that run: those by hand, those of tasks, and what was forked from them")
    .option("--tree", "each below the one that it was forked from")
    .addHelpText("after", EXAMPLES)
    .action((options: GatewayOptions & { tree?: boolean }) => list(options));
  return gatewayOptions(command);
}

async function list(options: GatewayOptions & { tree?: boolean }): Promise<void> {
  const output = new Output({ json: options.json ?? false });
  const vms = await Array.fromAsync(gatewayClient(options).vms.list());
  for (const vm of vms) output.emit({ event: "vm", ...vm });
  if (vms.length === 0) output.note("No VMs");
  else output.print((options.tree ? vmTreeTable : vmTable)(vms, Date.now()));
}
