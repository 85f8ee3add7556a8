import { Command, Option } from "commander";
import { bundleWorker } from "../../guest-agent/worker-host/bundle.ts";
import { type DeploySpecOptions, deploySpec, workerName } from "./deploy-spec.ts";
import { currentVersion, failureOf, untilSettled } from "./deploy-wait.ts";
import { formatMs } from "./format.ts";
import { type GatewayOptions, gatewayClient, gatewayOptions } from "./gateway-client.ts";
import { environment, positiveInteger, positiveNumber } from "./options.ts";
import { Output } from "./output.ts";
import { cliSignal } from "./signal.ts";
import { CONFIG_OPTION, configJsonSchema, configuredWorker } from "./worker-config.ts";
import { collect, secret } from "./worker-spec.ts";

interface DeployOptions extends DeploySpecOptions, GatewayOptions {
  config?: string;
  timeout: number;
  schema?: boolean;
}

const EXAMPLES = `
Examples:
  flurry deploy worker.ts --name hello
  flurry deploy worker.ts --name shop --host shop.example.com --isolation session
  flurry deploy worker.ts --name api --allow api.example.com:443 --secret DB_PASSWORD=db-password --warm /
  flurry deploy worker.ts --name report --cron '0 3 * * *'
  flurry deploy                                  what flurry.jsonc in this directory describes
  flurry deploy --schema > flurry.schema.json    for editors, as "$schema" of flurry.jsonc

The module is bundled here, with all that it imports. The new version becomes the current one; when it
does not load, the version before is made current again. Options win over flurry.jsonc: variables one by
one, lists as a whole.`;

/** `flurry deploy`: bundles a JS worker and has a gateway answer requests with it. */
export function deployCommand(): Command {
  const command = new Command("deploy")
    .description("Deploys a JS worker to a gateway, which answers requests to /w/NAME/ with forks of it")
    .option("--name <name>", "name of the worker")
    .addOption(
      new Option("--isolation <mode>", "what has a fork of its own: each request, each session, or none")
        .choices(["request", "session", "shared"])
        .default(undefined, "request"),
    )
    .option("--env <NAME=VALUE>", "variable for the worker's env (may be repeated)", environment)
    .option("--secret <VAR=NAME>", "variable that holds a stored secret (may be repeated)", secret)
    .option("--memory <MiB>", "memory of a guest (default: 512)", positiveInteger("--memory"))
    .option("--cpus <n>", "processors of a guest (default: 1)", positiveInteger("--cpus"))
    .option("--allow <host:port>", "where the worker's fetch() may go (may be repeated)", collect)
    .option("--cron <expression>", "time at which scheduled() is called, in UTC (may be repeated)", collect)
    .option(
      "--host <name>",
      "host whose requests the worker gets, beside /w/NAME/ (may be repeated)",
      collect,
    )
    .option("--warm <path>", "GET that the parent answers before it is frozen (may be repeated)", collect)
    .option(...CONFIG_OPTION)
    .option("--timeout <seconds>", "longest wait for it to be ready", positiveNumber("--timeout"), 900)
    .option("--schema", "print the JSON Schema of flurry.jsonc, and deploy nothing")
    .argument("[module]", "the worker's module (default: main of flurry.jsonc)");
  return gatewayOptions(command).addHelpText("after", EXAMPLES).action(deploy);
}

async function deploy(module: string | undefined, options: DeployOptions): Promise<void> {
  const output = new Output({ json: options.json ?? false });
  if (options.schema) {
    output.print(JSON.stringify(configJsonSchema(), undefined, 2));
    output.emit(configJsonSchema());
    return;
  }
  const signal = cliSignal();
  const began = performance.now();
  const configured = await configuredWorker(module, options.config);
  const name = workerName(options, configured);
  if (configured.file !== undefined) output.note(`As ${configured.file} says`);
  const bundle = await bundleWorker(configured.main, { signal });
  const { url, workers } = gatewayClient(options);
  // What is to be current again if the new version does not load.
  const before = await currentVersion(workers, name);
  const deployed = await workers.put(name, deploySpec(options, configured, bundle));
  const { version } = deployed;
  const isNew = version !== before?.version;
  output.note(isNew ? `Deployed ${name}@${version}` : `${name}@${version} is like this already`);
  const progress = output.progress(`${name}@${version}`);
  using _progress = progress;
  const settled = await untilSettled(workers, deployed, {
    timeoutMs: options.timeout * 1000,
    onStep: (step) => progress.describe(step),
    signal,
  });
  if (settled.state === "failed") {
    progress.finish();
    const { error, restored } = await failureOf(workers, settled, before);
    if (restored) output.emit({ event: "restored", name, version: restored.version });
    throw error;
  }
  progress.finish(`Ready after ${formatMs(performance.now() - began)}`);
  const address = `${url}/w/${name}/`;
  output.print(`${name}@${version} ${address}`);
  output.emit({ event: "deployed", name, version, created: isNew, url: address, bytes: bundle.bytes });
}
