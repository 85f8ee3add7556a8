import { Command } from "commander";
import { FlurryError } from "../../errors/errors.ts";
import { type Key, KeyCreate, type KeyLimits, Scope } from "../api/mod.ts";
import { newKey } from "../gateway/keys.ts";
import { openStore } from "../store/open.ts";
import { formatTable } from "./format.ts";
import { type GatewayOptions, gatewayClient, gatewayOptions } from "./gateway-client.ts";
import { positiveInteger } from "./options.ts";
import { Output } from "./output.ts";

interface KeyOptions extends GatewayOptions {
  data?: string;
}

interface CreateOptions extends KeyOptions {
  name: string;
  scope: Scope[];
  runningTasks?: number;
  waitingTasks?: number;
  activeJobs?: number;
  vms?: number;
}

/** Keys of a gateway that runs, or of a data directory whose gateway does not. */
interface Keys extends AsyncDisposable {
  create(key: { name: string; scopes: Scope[]; limits: KeyLimits }): Promise<Key & { key: string }>;
  list(): AsyncIterable<Key> | Iterable<Key>;
  remove(id: string): Promise<void>;
}

const CREATE_EXAMPLES = `
Examples:
  flurry key create --name ops --scope admin
  flurry key create --name ci --scope submit --scope read --running-tasks 4
  flurry key create --name ops --scope admin --data /srv/flurry    while no gateway runs on that directory

The key goes to stdout, this once; only its hash is kept. Give it to commands as $FLURRY_KEY. From the first
key on a gateway answers nobody without one.`;

/** `flurry key create|ls|rm`: who may use a gateway. */
export function keyCommand(): Command {
  const command = new Command("key").description("Makes, lists and removes the keys of a gateway");
  const create = command
    .command("create")
    .summary("Make a key")
    .description("Makes a key and prints it")
    .requiredOption("--name <name>", "whose it is, for people")
    .requiredOption("--scope <scope>", `${Scope.options.join(", ")} (may be repeated)`, scope)
    .option("--running-tasks <n>", "most tasks of it that run at a time", positiveInteger("--running-tasks"))
    .option("--waiting-tasks <n>", "most tasks of it that wait", positiveInteger("--waiting-tasks"))
    .option("--active-jobs <n>", "most jobs of it that have not ended", positiveInteger("--active-jobs"))
    .option(
      "--vms <n>",
      "most VMs of it that are made by hand or forked, at a time",
      positiveInteger("--vms"),
    )
    .addHelpText("after", CREATE_EXAMPLES)
    .action((options: CreateOptions) => createKey(options));
  const list = command
    .command("ls")
    .summary("List the keys")
    .description("Lists the keys, without what opens anything")
    .addHelpText("after", "\nExamples:\n  flurry key ls")
    .action((options: KeyOptions) => listKeys(options));
  const remove = command
    .command("rm")
    .summary("Remove keys")
    .description("Removes keys: from now on their holders are nobody")
    .argument("<id...>", "ids of keys")
    .addHelpText("after", "\nExamples:\n  flurry key rm 0123456789abcdef")
    .action((ids: string[], options: KeyOptions) => removeKeys(ids, options));
  for (const each of [create, list, remove]) {
    gatewayOptions(each).option(
      "--data <dir>",
      "data directory of a gateway that does not run, in place of one that does",
    );
  }
  return command;
}

async function createKey(options: CreateOptions): Promise<void> {
  const { name, scope: scopes, runningTasks, waitingTasks, activeJobs, vms, json = false } = options;
  const output = new Output({ json });
  const limits = {
    ...(runningTasks !== undefined && { runningTasks }),
    ...(waitingTasks !== undefined && { waitingTasks }),
    ...(activeJobs !== undefined && { activeJobs }),
    ...(vms !== undefined && { vms }),
  };
  await using keys = await openKeys(options);
  const made = await keys.create({ name, scopes, limits });
  output.emit({ event: "key", ...made });
  output.note(`Key ${made.id} of ${made.name} (${made.scopes.join(", ")}). It is shown this once:`);
  output.print(made.key);
}

async function listKeys(options: KeyOptions): Promise<void> {
  const output = new Output({ json: options.json ?? false });
  await using keys = await openKeys(options);
  const rows: string[][] = [];
  for await (const key of keys.list()) {
    output.emit({ event: "key", ...key });
    rows.push([key.id, key.scopes.join(","), limitsText(key.limits), key.createdAt, key.name]);
  }
  const columns = ["KEY", "SCOPES", "LIMITS", "CREATED", "NAME"].map((title) => ({ title }));
  if (rows.length === 0) output.note("No keys: a gateway answers this machine only");
  else output.print(formatTable(columns, rows));
}

async function removeKeys(ids: string[], options: KeyOptions): Promise<void> {
  const output = new Output({ json: options.json ?? false });
  await using keys = await openKeys(options);
  for (const id of ids) {
    await keys.remove(id);
    output.emit({ event: "removed", key: id });
    output.print(`Removed ${id}`);
  }
}

async function openKeys(options: KeyOptions): Promise<Keys> {
  if (options.data !== undefined) return keysOfStore(options.data);
  const { keys } = gatewayClient(options);
  return {
    create: (key) => keys.create(key),
    list: () => keys.list(),
    remove: (id) => keys.remove(id),
    [Symbol.asyncDispose]: () => Promise.resolve(),
  };
}

async function keysOfStore(dir: string): Promise<Keys> {
  const store = await openStore({ dir });
  return {
    create: async (wanted) => {
      const { id, key, hash } = newKey();
      const checked = KeyCreate.safeParse(wanted);
      if (!checked.success) {
        throw new FlurryError("BAD_ARGUMENT", `The key is not valid: ${checked.error.issues[0]?.message}`);
      }
      return { ...(await store.keys.create({ ...checked.data, id, hash })), key };
    },
    async *list() {
      yield* await store.keys.list();
    },
    remove: async (id) => {
      if (await store.keys.remove(id)) return;
      throw new FlurryError("KEY_NOT_FOUND", `There is no key ${JSON.stringify(id)}`);
    },
    [Symbol.asyncDispose]: () => store[Symbol.asyncDispose](),
  };
}

function scope(value: string, previous: Scope[] = []): Scope[] {
  const known = Scope.options.find((each) => each === value);
  if (known !== undefined) return [...previous.filter((each) => each !== known), known];
  throw new FlurryError("BAD_ARGUMENT", `There is no scope "${value}" among ${Scope.options.join(", ")}`);
}

function limitsText({ runningTasks, waitingTasks, activeJobs, vms }: KeyLimits): string {
  const parts = { running: runningTasks, waiting: waitingTasks, jobs: activeJobs, vms };
  return Object.entries(parts)
    .flatMap(([name, limit]) => (limit === undefined ? [] : [`${name} ${limit}`]))
    .join(", ");
}
