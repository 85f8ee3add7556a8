import { Command } from "commander";
import { FlurryError } from "../../errors/errors.ts";
import type { VmCreateInput } from "../client/mod.ts";
import { type GatewayOptions, gatewayClient, gatewayOptions } from "./gateway-client.ts";
import { Output } from "./output.ts";
import { cliSignal } from "./signal.ts";
import { type ParentOptions, parentOf, parentOptions } from "./worker-spec.ts";

interface CreateOptions extends ParentOptions, GatewayOptions {
  worker?: string;
  checkpoint?: string;
}

const EXAMPLES = `
Examples:
  flurry vm create --image base
  flurry vm create --image base --memory 256 --file /opt/run.sh=./run.sh --warm 'sh /opt/run.sh'
  flurry vm create --worker blast@2
  ID=$(flurry vm create --checkpoint warm)

The id of the VM goes to stdout. It runs until \`flurry vm kill\` ends it, or the gateway ends.`;

/** `flurry vm create`. */
export function createCommand(): Command {
  const command = new Command("create")
    .summary("Make a VM of an image, of a worker's parent, or of a checkpoint")
    .description(
      "Makes a VM of an image, of a deployed worker's parent, or of a checkpoint, and prints its id",
    )
    .option("--worker <name[@version]>", "deployed worker whose image, files and warm-up it has")
    .option("--checkpoint <name>", "checkpoint that it goes on from");
  parentOptions(command)
    .addHelpText("after", EXAMPLES)
    .action((options: CreateOptions) => create(options));
  return gatewayOptions(command);
}

async function create(options: CreateOptions): Promise<void> {
  const output = new Output({ json: options.json ?? false });
  const source = sourceOf(options);
  using progress = output.progress("VM");
  const vm = await gatewayClient(options).vms.create(source, { signal: cliSignal() });
  progress.finish();
  output.emit({ event: "vm", ...vm });
  output.print(vm.id);
}

/** @throws FlurryError BAD_ARGUMENT unless it is one of the three, with what belongs to it */
export function sourceOf({ worker, checkpoint, ...options }: CreateOptions): VmCreateInput {
  const { image, file = [], warm, memory, lazy, cpus } = options;
  const named = { "--image": image, "--worker": worker, "--checkpoint": checkpoint };
  const given = Object.entries(named).filter(([, value]) => value !== undefined);
  if (given.length !== 1) {
    const what = given.length === 0 ? "Nothing to make a VM of" : given.map(([name]) => name).join(" and ");
    throw new FlurryError("BAD_ARGUMENT", `${what}: one of --image, --worker and --checkpoint is needed`);
  }
  if (image !== undefined) return { worker: { image, ...parentOf(options) } };
  const more = {
    "--file": file.length > 0,
    "--warm": warm,
    "--memory": memory,
    "--lazy": lazy,
    "--cpus": cpus,
  };
  const beside = Object.entries(more).filter(([, value]) => value !== undefined && value !== false);
  if (beside.length > 0) {
    const names = beside.map(([name]) => name).join(", ");
    throw new FlurryError("BAD_ARGUMENT", `${given[0]?.[0]} takes no ${names}: it has its own`);
  }
  return worker === undefined ? { checkpoint: checkpoint! } : { worker };
}
