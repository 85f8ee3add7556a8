import { Command } from "commander";
import { gatewayOptions } from "./gateway-client.ts";
import { checkpointCommand, checkpointsCommand, removeCheckpointCommand } from "./vm-checkpoint.ts";
import { copyCommand } from "./vm-cp.ts";
import { createCommand } from "./vm-create.ts";
import { execCommand } from "./vm-exec.ts";
import { forkCommand } from "./vm-fork.ts";
import { killCommand } from "./vm-kill.ts";
import { listCommand } from "./vm-list.ts";
import { showReceipt, type VmReceiptOptions } from "./vm-receipt.ts";

const RECEIPT_EXAMPLES = `
Examples:
  flurry vm receipt vm-0123456789ab
  flurry vm receipt vm-0123456789ab --json
  flurry vm receipt vm-0123456789ab --public-key receipts.pem

A task finds the id of its VM in FLURRY_VM_ID. Exits with 5 if the signature is not valid.`;

/** `flurry vm …`: VMs of a gateway. */
export function vmCommand(): Command {
  const command = new Command("vm").description("Makes VMs on a gateway, forks and uses them");
  for (const make of [createCommand, listCommand, forkCommand, execCommand, copyCommand]) {
    command.addCommand(make());
  }
  for (const make of [checkpointCommand, checkpointsCommand, removeCheckpointCommand, killCommand]) {
    command.addCommand(make());
  }
  addReceipt(command);
  command.addHelpText(
    "after",
    "\nA gateway runs with: flurry serve. Its key, if it needs one, is $FLURRY_KEY.",
  );
  return command;
}

function addReceipt(command: Command): void {
  const receipt = command
    .command("receipt")
    .summary("Show how a VM has proven its identity")
    .description(
      "Shows what a VM was sent as its identity, what it has read back, and whether that is signed",
    )
    .argument("<id>", "of the VM")
    .option("--public-key <file>", "key to check the signature with, as PEM (default: what the gateway says)")
    .addHelpText("after", RECEIPT_EXAMPLES)
    .action((id: string, options: VmReceiptOptions) => showReceipt(id, options));
  gatewayOptions(receipt);
}
