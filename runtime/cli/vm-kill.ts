import { Command } from "commander";
import { type GatewayOptions, gatewayClient, gatewayOptions } from "./gateway-client.ts";
import { Output } from "./output.ts";
import { cliSignal } from "./signal.ts";

/** `flurry vm kill`. */
export function killCommand(): Command {
  const command = new Command("kill")
    .summary("End VMs, and all that were forked from them")
    .description("Ends VMs, and all that were forked from them")
    .argument("<id...>", "of VMs")
    .addHelpText("after", "\nExamples:\n  flurry vm kill vm-0123456789ab")
    .action((ids: string[], options: GatewayOptions) => kill(ids, options));
  return gatewayOptions(command);
}

async function kill(ids: string[], options: GatewayOptions): Promise<void> {
  const output = new Output({ json: options.json ?? false });
  const { vms } = gatewayClient(options);
  const gone = new Set<string>();
  for (const id of ids) {
    // It has gone with the one that it was forked from.
    if (gone.has(id)) continue;
    for (const each of await vms.kill(id, { signal: cliSignal() })) {
      gone.add(each);
      output.emit({ event: "killed", vm: each });
      output.print(`Killed ${each}`);
    }
  }
}
