import { Command } from "commander";
import { FlurryError } from "../../errors/errors.ts";
import { SecretPut } from "../api/mod.ts";
import { formatTable } from "./format.ts";
import { type GatewayOptions, gatewayClient, gatewayOptions } from "./gateway-client.ts";
import { Output } from "./output.ts";

/** Most bytes that are read of the standard input: a secret is shorter. */
const MAX_BYTES = 256 * 1024;

/** `flurry secret put|ls|rm`: values that tasks get and nobody reads. */
export function secretCommand(): Command {
  const command = new Command("secret").description("Stores values that tasks get as variables");
  const put = command
    .command("put")
    .summary("Store a secret, from the standard input")
    .description("Stores what the standard input has, without one line end at its end, under a name")
    .argument("<name>", "name of the secret")
    .option("--key <id>", "only for jobs of this key (may be repeated; default: of all keys)", collected)
    .addHelpText("after", "\nExamples:\n  flurry secret put db-password < password.txt")
    .action((name: string, options: PutOptions) => store(name, options));
  const list = command
    .command("ls")
    .summary("List the names of secrets")
    .description("Lists the names of secrets; their values are never shown")
    .addHelpText("after", "\nExamples:\n  flurry secret ls")
    .action((options: GatewayOptions) => show(options));
  const remove = command
    .command("rm")
    .summary("Remove secrets")
    .description("Removes secrets: tasks that need them fail from now on")
    .argument("<name...>", "names of secrets")
    .addHelpText("after", "\nExamples:\n  flurry secret rm db-password")
    .action((names: string[], options: GatewayOptions) => removeAll(names, options));
  for (const each of [put, list, remove]) gatewayOptions(each);
  return command;
}

interface PutOptions extends GatewayOptions {
  key?: string[];
}

function collected(value: string, previous: string[] = []): string[] {
  return [...previous, value];
}

async function store(name: string, options: PutOptions): Promise<void> {
  const output = new Output({ json: options.json ?? false });
  if (process.stdin.isTTY) output.note("The secret's value, then Ctrl-D:");
  const value = (await readStdin()).replace(/\r?\n$/, "");
  const checked = SecretPut.safeParse({ value, keys: options.key });
  if (!checked.success) {
    throw new FlurryError("BAD_ARGUMENT", `The secret is not valid: ${checked.error.issues[0]?.message}`);
  }
  const secret = await gatewayClient(options).secrets.put(name, value, { keys: options.key });
  output.emit({ event: "secret", ...secret });
  output.print(`Stored ${secret.name}`);
}

async function show(options: GatewayOptions): Promise<void> {
  const output = new Output({ json: options.json ?? false });
  const rows: string[][] = [];
  for await (const secret of gatewayClient(options).secrets.list()) {
    output.emit({ event: "secret", ...secret });
    rows.push([secret.name, secret.keys?.join(" ") ?? "all", secret.createdAt]);
  }
  if (rows.length === 0) output.note("No secrets");
  else output.print(formatTable([{ title: "SECRET" }, { title: "KEYS" }, { title: "CREATED" }], rows));
}

async function removeAll(names: string[], options: GatewayOptions): Promise<void> {
  const output = new Output({ json: options.json ?? false });
  const { secrets } = gatewayClient(options);
  for (const name of names) {
    await secrets.remove(name);
    output.emit({ event: "removed", secret: name });
    output.print(`Removed ${name}`);
  }
}

async function readStdin(): Promise<string> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of process.stdin) {
    bytes += chunk.length;
    if (bytes > MAX_BYTES)
      throw new FlurryError("BAD_ARGUMENT", `The value has more than ${MAX_BYTES} bytes`);
    chunks.push(chunk);
  }
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(Buffer.concat(chunks));
  } catch (cause) {
    throw new FlurryError("BAD_ARGUMENT", "The value is not UTF-8", { cause });
  }
}
