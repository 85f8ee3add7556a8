import { Command } from "commander";
import { type GatewayOptions, gatewayClient, gatewayOptions } from "./gateway-client.ts";
import { positiveInteger } from "./options.ts";
import { Output } from "./output.ts";
import { cliSignal } from "./signal.ts";

/** Of children that did not start. */
const FAILED_EXIT = 5;

const EXAMPLES = `
Examples:
  flurry vm fork vm-0123456789ab
  flurry vm fork vm-0123456789ab 8
  for id in $(flurry vm fork vm-0123456789ab 4); do flurry vm exec $id -- hostname; done

The VM goes on, and what runs in it goes on in each child too. The ids of the children go to stdout. Exits with 5 if
one did not start; the others are there.`;

/** `flurry vm fork`. */
export function forkCommand(): Command {
  const command = new Command("fork")
    .summary("Fork a VM, which goes on")
    .description("Forks a VM, which goes on, and prints the ids of its children")
    .argument("<id>", "of the VM")
    .argument("[n]", "how many children, at most 1000 (default: 1)", positiveInteger("N"))
    .addHelpText("after", EXAMPLES)
    .action((id: string, count: number | undefined, options: GatewayOptions) => fork(id, count, options));
  return gatewayOptions(command);
}

async function fork(id: string, count = 1, options: GatewayOptions): Promise<void> {
  const output = new Output({ json: options.json ?? false });
  const results = await gatewayClient(options).vms.fork(id, count, { signal: cliSignal() });
  for (const result of results) {
    if (result.status === "fulfilled") {
      output.emit({ event: "vm", ...result.vm });
      output.print(result.vm.id);
    } else {
      const { code, message } = result.error;
      output.emit({ event: "failed", error: result.error });
      output.note(`A child did not start: ${message} (${code})`);
      process.exitCode = FAILED_EXIT;
    }
  }
}
