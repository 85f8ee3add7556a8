import { Command } from "commander";
import { FlurryError } from "../../errors/errors.ts";
import { JobState, TaskState } from "../api/mod.ts";
import type { Job, Task } from "../client/mod.ts";
import { formatMs, formatTable } from "./format.ts";
import { type GatewayOptions, gatewayClient, gatewayOptions } from "./gateway-client.ts";
import { positiveInteger } from "./options.ts";
import { Output } from "./output.ts";

/** Columns of a table of jobs. */
const JOB_COLUMNS = [
  { title: "JOB" },
  { title: "STATE" },
  { title: "DONE", align: "right" as const },
  { title: "FAILED", align: "right" as const },
  { title: "AGE", align: "right" as const },
  { title: "WORKER" },
  { title: "NAME" },
  { title: "TAGS" },
];

/** `flurry job ls`. */
export function listCommand(): Command {
  const command = new Command("ls")
    .summary("List jobs, newest first")
    .description("Lists jobs, newest first")
    .option("--state <state>", `only in this state: ${JobState.options.join(", ")}`, oneOf(JobState.options))
    .option("--tag <tag>", "only with this tag")
    .option("--limit <n>", "most jobs to list", positiveInteger("--limit"), 20)
    .addHelpText(
      "after",
      "\nExamples:\n  flurry job ls --state running\n  flurry job ls --tag nightly --json",
    )
    .action((options: GatewayOptions & { state?: JobState; tag?: string; limit: number }) => list(options));
  return gatewayOptions(command);
}

/** `flurry job get`. */
export function getCommand(): Command {
  const command = new Command("get")
    .summary("Show a job, and its tasks")
    .description("Shows a job, and its tasks")
    .argument("<job>", "id of the job")
    .option("--tasks", "list its tasks too")
    .option(
      "--state <state>",
      `only tasks in this state: ${TaskState.options.join(", ")}`,
      oneOf(TaskState.options),
    )
    .addHelpText("after", "\nExamples:\n  flurry job get job_…\n  flurry job get job_… --state failed")
    .action((id: string, options: GatewayOptions & { tasks?: boolean; state?: TaskState }) =>
      get(id, options),
    );
  return gatewayOptions(command);
}

async function list(options: GatewayOptions & { state?: JobState; tag?: string; limit: number }) {
  const { state, tag, limit, json = false } = options;
  const output = new Output({ json });
  const rows: string[][] = [];
  for await (const job of gatewayClient(options).jobs.list({ state, tag, pageSize: Math.min(limit, 1000) })) {
    output.emit({ event: "job", ...job });
    rows.push(rowOf(job));
    if (rows.length === limit) break;
  }
  if (rows.length === 0) output.note("No jobs");
  else output.print(formatTable(JOB_COLUMNS, rows));
}

async function get(id: string, options: GatewayOptions & { tasks?: boolean; state?: TaskState }) {
  const { json = false, state, tasks = state !== undefined } = options;
  const output = new Output({ json });
  const client = gatewayClient(options);
  const job = await client.jobs.get(id);
  output.emit({ event: "job", ...job });
  output.print(describeJob(job));
  if (!tasks) return;
  for await (const task of client.jobs.tasks(id, { state })) {
    output.emit({ event: "task", ...task });
    output.print(taskLine(task));
  }
}

function rowOf(job: Job): string[] {
  const { succeeded, failed, canceled, total } = job.tasks;
  return [
    job.id,
    job.state,
    `${succeeded + failed + canceled}/${total}`,
    failed === 0 ? "" : String(failed),
    formatMs(Math.max(0, Date.now() - Date.parse(job.createdAt))),
    workerOf(job),
    job.name ?? "",
    job.tags.join(" "),
  ];
}

function describeJob(job: Job): string {
  const counts = Object.entries(job.tasks)
    .filter(([name, count]) => name === "total" || count > 0)
    .map(([name, count]) => `${count} ${name === "total" ? "in all" : name}`);
  const lines = [
    ["job", job.id],
    ["name", job.name],
    ["state", `${job.state}: ${job.reason}`],
    ["waiting", job.waiting],
    ["tasks", counts.join(", ")],
    ["worker", workerOf(job)],
    ["command", job.worker.command.join(" ")],
    ["priority", String(job.priority)],
    ["attempts", String(job.retry.maxAttempts)],
    ["timeout", job.timeoutMs === undefined ? undefined : formatMs(job.timeoutMs)],
    ["tags", job.tags.length === 0 ? undefined : job.tags.join(" ")],
    ["webhook", job.webhook?.url],
    ["created", job.createdAt],
    ["started", job.startedAt],
    ["ended", job.endedAt],
  ];
  const rows = lines.flatMap(([label, text]) => (text === undefined ? [] : [[`${label}`, text]]));
  return formatTable([{ title: "" }, { title: "" }], rows);
}

function workerOf({ worker: { name, version, image } }: Job): string {
  return name === undefined ? `image ${image}` : `${name}@${version} (image ${image})`;
}

function taskLine({ index, state, reason, attempt, exitCode, signal, error }: Task): string {
  const end =
    signal === undefined ? (exitCode === undefined ? "" : `, exit status ${exitCode}`) : `, signal ${signal}`;
  const why = error ? ` (${error.code}: ${error.message})` : "";
  return `[${index}] ${state}, attempt ${attempt}${end}: ${reason}${why}`;
}

/** Parser of an option that is one of some words. */
export function oneOf<T extends string>(words: readonly T[]): (value: string) => T {
  return (value) => {
    const word = words.find((each) => each === value);
    if (word !== undefined) return word;
    throw new FlurryError("BAD_ARGUMENT", `There is no "${value}" among ${words.join(", ")}`);
  };
}
