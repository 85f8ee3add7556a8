import { randomUUID } from "node:crypto";
import { Command } from "commander";
import { FlurryError } from "../../errors/errors.ts";
import type { FlurryClient, JobHeadInput, Submitted } from "../client/mod.ts";
import { type GatewayOptions, gatewayClient, gatewayOptions } from "./gateway-client.ts";
import { readInputs } from "./job-inputs.ts";
import { waitFor } from "./job-wait.ts";
import { positiveInteger } from "./options.ts";
import { Output } from "./output.ts";
import { PacedSink } from "./paced-sink.ts";
import { attemptsOf, collect, type SpecOptions, specOf, specOptions, wholeNumber } from "./worker-spec.ts";

interface SubmitOptions extends SpecOptions, GatewayOptions {
  worker?: string;
  count?: number;
  inputs?: string;
  lines?: boolean;
  name?: string;
  tag?: string[];
  priority?: number;
  webhook?: string;
  idempotencyKey?: string;
  wait?: boolean;
  dryRun?: boolean;
}

const EXAMPLES = `
Examples:
  flurry job submit --image base --count 8 --wait -- sh -c 'echo task $FLURRY_TASK_INDEX of $FLURRY_TASK_COUNT'
  flurry job submit --worker render@2 --inputs scenes.ndjson --tag nightly
  ls *.txt | flurry job submit --image base --inputs - --lines -- sh -c 'cat; echo " is what I got"'
  flurry job submit --image base --file /opt/run.sh=./run.sh --retries 2 --timeout 60 -- sh /opt/run.sh

The id of the job goes to stdout. A task reads its input on its standard input, and in FLURRY_TASK_INPUT
when it is short. With --wait the exit code is 4 if a task failed. A webhook's secret is taken from
$FLURRY_WEBHOOK_SECRET.`;

/** `flurry job submit`: hands a job to the gateway. */
export function submitCommand(): Command {
  const command = new Command("submit")
    .summary("Submit a job, and wait for it if you like")
    .description("Submits a job: a command in an image, or a deployed worker, as many tasks")
    .option("--worker <name[@version]>", "deployed worker to run, in place of an image and a command")
    .option("--count <n>", "number of tasks (default: 1)", positiveInteger("--count"))
    .option("--inputs <file>", "one task for each line: JSON values, one a line; - is the standard input")
    .option("--lines", "take lines of --inputs as they stand, as strings");
  specOptions(command)
    .option("--name <name>", "name of the job, for people")
    .option("--tag <tag>", "tag to find it by (may be repeated)", collect)
    .option("--priority <0-9>", "9 comes first (default: 5)", wholeNumber("--priority"))
    .option("--webhook <url>", "where to tell of the job's end")
    .option("--idempotency-key <key>", "make one job of all submissions with this key within 24 h")
    .option("--wait", "show how the job goes on, and its results")
    .option("--dry-run", "check the job, and do not submit it")
    .argument("[command...]", "command and arguments, after --")
    .addHelpText("after", EXAMPLES)
    .action((argv: string[], options: SubmitOptions) => submit(argv, options));
  return gatewayOptions(command);
}

async function submit(argv: string[], options: SubmitOptions): Promise<void> {
  if (options.inputs !== undefined && options.count !== undefined) {
    throw new FlurryError("BAD_ARGUMENT", "--count and --inputs exclude each other: each input is one task");
  }
  if (options.lines && options.inputs === undefined) {
    throw new FlurryError("BAD_ARGUMENT", "--lines says how to read --inputs, which is not given");
  }
  const out = new PacedSink(process.stdout);
  const output = new Output({ json: options.json ?? false, out });
  const client = gatewayClient(options);
  const head = headOf(argv, options);
  if (options.dryRun) return dryRun(client, head, options, output);
  const { job, replayed } = await send(client, head, options);
  output.emit({ event: "job", replayed, ...job });
  const known = replayed ? ", which was submitted before" : "";
  output.note(`Job ${job.id}: ${job.tasks.total} task${job.tasks.total === 1 ? "" : "s"}${known}`);
  if (options.wait) await waitFor(client, job, { output, out });
  else output.print(job.id);
}

function send(client: FlurryClient, head: JobHeadInput, options: SubmitOptions): Promise<Submitted> {
  const { inputs, lines = false, count = 1, idempotencyKey = randomUUID() } = options;
  if (inputs === undefined) return client.jobs.submit({ ...head, tasks: { count } }, { idempotencyKey });
  return client.jobs.submitStream(head, readInputs({ file: inputs, lines }), { idempotencyKey });
}

async function dryRun(client: FlurryClient, head: JobHeadInput, options: SubmitOptions, output: Output) {
  let count = options.count ?? 1;
  if (options.inputs !== undefined) {
    count = 0;
    for await (const _input of readInputs({ file: options.inputs, lines: options.lines ?? false }))
      count += 1;
  }
  const { tasks, worker } = await client.jobs.validate({ ...head, tasks: { count } });
  output.emit({ event: "valid", tasks, worker });
  const name = worker.name === undefined ? "" : ` of worker ${worker.name}@${worker.version}`;
  output.print(`The job is valid: ${tasks} task${tasks === 1 ? "" : "s"}${name} in image ${worker.image}`);
}

function headOf(argv: readonly string[], options: SubmitOptions): JobHeadInput {
  const { worker, name, tag = [], priority, webhook, env = {} } = options;
  const secret = process.env.FLURRY_WEBHOOK_SECRET || undefined;
  const common = {
    tags: tag,
    ...(name !== undefined && { name }),
    ...(priority !== undefined && { priority }),
    ...(webhook !== undefined && { webhook: { url: webhook, ...(secret !== undefined && { secret }) } }),
  };
  if (worker === undefined) return { ...common, worker: specOf(argv, options) };
  refuseBesideWorker(argv, options);
  return { ...common, worker, env, ...attemptsOf(options) };
}

/** What a deployed worker has already. */
function refuseBesideWorker(argv: readonly string[], options: SubmitOptions): void {
  const { image, file = [], warm, memory, cpus, cwd, secret = {} } = options;
  const given = Object.entries({ image, warm, memory, cpus, cwd })
    .filter(([, value]) => value !== undefined)
    .map(([name]) => `--${name}`);
  if (file.length > 0) given.push("--file");
  if (Object.keys(secret).length > 0) given.push("--secret");
  if (argv.length > 0) given.push("a command");
  if (given.length === 0) return;
  throw new FlurryError("BAD_ARGUMENT", `A deployed worker takes no ${given.join(", ")}: it has its own`, {
    hint: "deploy a new version with `flurry worker put`, or leave --worker out",
  });
}
