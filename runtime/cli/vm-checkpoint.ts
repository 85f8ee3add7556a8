import { Command } from "commander";
import { formatBytes, formatMs, formatTable } from "./format.ts";
import { type GatewayOptions, gatewayClient, gatewayOptions } from "./gateway-client.ts";
import { Output } from "./output.ts";
import { cliSignal } from "./signal.ts";

const COLUMNS = [
  { title: "CHECKPOINT" },
  { title: "OF" },
  { title: "GENERATION", align: "right" as const },
  { title: "AGE", align: "right" as const },
  { title: "MEMORY", align: "right" as const },
  { title: "ON DISK", align: "right" as const },
  { title: "IMAGE" },
];

/** `flurry vm checkpoint`. */
export function checkpointCommand(): Command {
  const command = new Command("checkpoint")
    .summary("Keep a VM's state under a name")
    .description("Keeps a VM's state under a name, from which others can be made. The VM goes on")
    .argument("<id>", "of the VM")
    .argument("<name>", "of the checkpoint")
    .addHelpText(
      "after",
      "\nExamples:\n  flurry vm checkpoint vm-0123456789ab warm && flurry vm create --checkpoint warm" +
        "\n\nIt stays when the VM is gone, and when the gateway is started again.",
    )
    .action(async (id: string, name: string, options: GatewayOptions) => {
      const output = new Output({ json: options.json ?? false });
      using progress = output.progress(`Checkpoint ${name}`);
      const kept = await gatewayClient(options).vms.checkpoint(id, name, { signal: cliSignal() });
      progress.finish();
      output.emit({ event: "checkpoint", ...kept });
      output.print(`Kept ${kept.vm} as ${kept.name}, ${formatBytes(kept.storedBytes)} on disk`);
    });
  return gatewayOptions(command);
}

/** `flurry vm checkpoints`. */
export function checkpointsCommand(): Command {
  const command = new Command("checkpoints")
    .summary("List the checkpoints")
    .description("Lists the checkpoints")
    .addHelpText("after", "\nExamples:\n  flurry vm checkpoints")
    .action(async (options: GatewayOptions) => {
      const output = new Output({ json: options.json ?? false });
      const now = Date.now();
      const rows: string[][] = [];
      for await (const kept of gatewayClient(options).vms.checkpoints()) {
        output.emit({ event: "checkpoint", ...kept });
        const { name, vm, generation, createdAt, memoryBytes, storedBytes, image } = kept;
        const age = formatMs(Math.max(0, now - Date.parse(createdAt)));
        const sizes = [formatBytes(memoryBytes), formatBytes(storedBytes)];
        rows.push([name, vm, String(generation), age, ...sizes, image]);
      }
      if (rows.length === 0) output.note("No checkpoints");
      else output.print(formatTable(COLUMNS, rows));
    });
  return gatewayOptions(command);
}

/** `flurry vm rm-checkpoint`. */
export function removeCheckpointCommand(): Command {
  const command = new Command("rm-checkpoint")
    .summary("Remove checkpoints")
    .description("Removes checkpoints; VMs that were made of them go on")
    .argument("<name...>", "of checkpoints")
    .addHelpText("after", "\nExamples:\n  flurry vm rm-checkpoint warm")
    .action(async (names: string[], options: GatewayOptions) => {
      const output = new Output({ json: options.json ?? false });
      const { vms } = gatewayClient(options);
      for (const name of names) {
        await vms.removeCheckpoint(name);
        output.emit({ event: "removed", checkpoint: name });
        output.print(`Removed ${name}`);
      }
    });
  return gatewayOptions(command);
}
