import { readFileSync } from "node:fs";
import { Command } from "commander";
import { FlurryError } from "../../errors/errors.ts";
import { imageOf, WorkerSpec, type WorkerSpecInput } from "../api/mod.ts";
import type { WorkerVersion } from "../client/mod.ts";
import { formatTable } from "./format.ts";
import { type GatewayOptions, gatewayClient, gatewayOptions } from "./gateway-client.ts";
import { Output } from "./output.ts";
import { showLogs } from "./worker-logs.ts";
import { rollBack } from "./worker-rollback.ts";
import { type SpecOptions, specOf, specOptions } from "./worker-spec.ts";
import { trigger } from "./worker-trigger.ts";

const PUT_EXAMPLES = `
Examples:
  flurry worker put render --image povray --warm 'povray --version' --retries 1 -- sh /opt/render.sh
  flurry worker put render --spec render.json

A spec is what PUT /v1/workers/{name} takes: docs/api.md has it.`;

/** `flurry worker put|ls|get|use|rollback|logs|trigger|rm`: what jobs may name in place of an image and a command. */
export function workerCommand(): Command {
  const command = new Command("worker").description("Deploys workers, which jobs run by their name");
  const put = command
    .command("put")
    .summary("Deploy a worker, or a new version of it")
    .description("Deploys a worker: a new version becomes the current one, unless that is equal")
    .argument("<name>", "name of the worker")
    .option("--spec <file>", "description as JSON, in place of the other options and a command");
  specOptions(put)
    .argument("[command...]", "command and arguments of every task, after --")
    .addHelpText("after", PUT_EXAMPLES)
    .action((name: string, argv: string[], options: SpecOptions & GatewayOptions & { spec?: string }) =>
      deploy(name, argv, options),
    );
  const list = command
    .command("ls")
    .summary("List workers")
    .description("Lists workers in their current versions, and whether children can be forked from them")
    .addHelpText("after", "\nExamples:\n  flurry worker ls")
    .action((options: GatewayOptions) => show(gatewayClient(options).workers.list(), options));
  const get = command
    .command("get")
    .summary("Show a worker")
    .description("Shows a worker as JSON")
    .argument("<name[@version]>", "name of the worker; its current version by default")
    .option("--versions", "list its versions")
    .addHelpText("after", "\nExamples:\n  flurry worker get render@2\n  flurry worker get render --versions")
    .action((name: string, options: GatewayOptions & { versions?: boolean }) => showOne(name, options));
  const use = command
    .command("use")
    .summary("Make a version the current one")
    .description("Makes a version the one that jobs get when they name none")
    .argument("<name@version>", "name and version of the worker")
    .addHelpText("after", "\nExamples:\n  flurry worker use render@1")
    .action((name: string, options: GatewayOptions) => setCurrent(name, options));
  const rollback = command
    .command("rollback")
    .summary("Go back to the version before")
    .description("Makes the version before the current one current; those that have failed are left out")
    .argument("<name>", "name of the worker")
    .addHelpText("after", "\nExamples:\n  flurry worker rollback render")
    .action((name: string, options: GatewayOptions) => rollBack(name, options));
  const remove = command
    .command("rm")
    .summary("Remove workers")
    .description("Removes workers with all versions; their jobs go on")
    .argument("<name...>", "names of workers")
    .addHelpText("after", "\nExamples:\n  flurry worker rm render")
    .action((names: string[], options: GatewayOptions) => removeAll(names, options));
  const logs = command
    .command("logs")
    .summary("Show what a JS worker prints")
    .description("Shows what a JS worker has printed of late while it answered requests")
    .argument("<name>", "name of the worker")
    .option("-f, --follow", "go on as it prints more")
    .addHelpText("after", "\nExamples:\n  flurry worker logs shop --follow")
    .action((name: string, options: GatewayOptions & { follow?: boolean }) => showLogs(name, options));
  const triggering = command
    .command("trigger")
    .summary("Call scheduled() of a JS worker now")
    .description("Calls scheduled() of a JS worker now, in a fork of its own, and waits for its end")
    .argument("<name>", "name of the worker")
    .option("--cron <expression>", "what the event says (default: the worker's first one)")
    .addHelpText("after", "\nExamples:\n  flurry worker trigger shop --cron '0 3 * * *'")
    .action((name: string, options: GatewayOptions & { cron?: string }) => trigger(name, options));
  for (const each of [put, list, get, use, rollback, logs, triggering, remove]) gatewayOptions(each);
  return command;
}

async function deploy(
  name: string,
  argv: string[],
  options: SpecOptions & GatewayOptions & { spec?: string },
) {
  const output = new Output({ json: options.json ?? false });
  const spec = options.spec === undefined ? specOf(argv, options) : readSpec(options.spec, argv, options);
  const worker = await gatewayClient(options).workers.put(name, spec);
  output.emit({ event: "worker", ...worker });
  output.print(`${worker.name}@${worker.version} ${worker.state}`);
  if (worker.state !== "ready") {
    output.note(`Its parent is made ready now; flurry worker get ${worker.name} shows how far that is`);
  }
}

async function showOne(text: string, options: GatewayOptions & { versions?: boolean }): Promise<void> {
  const { name, version } = nameOf(text);
  const { workers } = gatewayClient(options);
  if (options.versions) return show(workers.versions(name), options);
  const output = new Output({ json: options.json ?? false });
  const worker = await workers.get(name, { version });
  output.emit({ event: "worker", ...worker });
  output.print(JSON.stringify(worker, undefined, 2));
}

async function setCurrent(text: string, options: GatewayOptions): Promise<void> {
  const { name, version } = nameOf(text);
  if (version === undefined) {
    throw new FlurryError("BAD_ARGUMENT", `"${text}" names no version`, { hint: `as in ${name}@1` });
  }
  const output = new Output({ json: options.json ?? false });
  const worker = await gatewayClient(options).workers.setCurrent(name, version);
  output.emit({ event: "worker", ...worker });
  output.print(`${worker.name}@${worker.version} is current`);
}

async function removeAll(names: string[], options: GatewayOptions): Promise<void> {
  const output = new Output({ json: options.json ?? false });
  const { workers } = gatewayClient(options);
  for (const name of names) {
    await workers.remove(name);
    output.emit({ event: "removed", worker: name });
    output.print(`Removed ${name}`);
  }
}

async function show(workers: AsyncIterable<WorkerVersion>, options: GatewayOptions): Promise<void> {
  const output = new Output({ json: options.json ?? false });
  const rows: string[][] = [];
  for await (const worker of workers) {
    output.emit({ event: "worker", ...worker });
    const { name, version, current, state, step, error, spec, createdAt } = worker;
    const detail = error ? `${error.message} (${error.code})` : (step ?? "");
    rows.push([`${name}@${version}`, current ? "current" : "", state, imageOf(spec), createdAt, detail]);
  }
  const columns = ["WORKER", "", "STATE", "IMAGE", "CREATED", ""].map((title) => ({ title }));
  if (rows.length === 0) output.note("No workers");
  else output.print(formatTable(columns, rows));
}

function nameOf(text: string): { name: string; version?: number } {
  const [, name, version] = /^([^@]+)(?:@([1-9]\d{0,8}))?$/.exec(text) ?? [];
  if (name === undefined) throw new FlurryError("BAD_ARGUMENT", `"${text}" is no NAME or NAME@VERSION`);
  return version === undefined ? { name } : { name, version: Number(version) };
}

function readSpec(file: string, argv: readonly string[], { image }: SpecOptions): WorkerSpecInput {
  if (argv.length > 0 || image !== undefined) {
    throw new FlurryError("BAD_ARGUMENT", "--spec has the image and the command: give no others beside it");
  }
  try {
    return WorkerSpec.parse(JSON.parse(readFileSync(file, "utf8")));
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new FlurryError("BAD_ARGUMENT", `Cannot take a worker from "${file}": ${reason}`, { cause });
  }
}
