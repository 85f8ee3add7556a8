import { Command } from "commander";
import { gatewayOptions } from "./gateway-client.ts";
import { showReceipt, type VmReceiptOptions } from "./vm-receipt.ts";

const RECEIPT_EXAMPLES = `
Examples:
  flurry vm receipt vm-0123456789ab
  flurry vm receipt vm-0123456789ab --json
  flurry vm receipt vm-0123456789ab --public-key receipts.pem

A task finds the id of its VM in FLURRY_VM_ID. Exits with 5 if the signature is not valid.`;

/** `flurry vm receipt`: VMs of a gateway. */
export function vmCommand(): Command {
  const command = new Command("vm").description("Shows what VMs of a gateway have proven");
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
  return command;
}
