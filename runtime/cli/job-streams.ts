import { Command } from "commander";
import type { JobEvent, LogChunk } from "../client/mod.ts";
import { type GatewayOptions, gatewayClient, gatewayOptions } from "./gateway-client.ts";
import { oneOf } from "./job-show.ts";
import { showResult } from "./job-wait.ts";
import { LinePrefixer } from "./line-prefixer.ts";
import { Output } from "./output.ts";
import { PacedSink } from "./paced-sink.ts";
import { wholeNumber } from "./worker-spec.ts";

/** Outputs whose unfinished lines are kept; those of further tasks are shown as they stand. */
const MAX_OPEN_LINES = 1000;

interface FollowOptions extends GatewayOptions {
  follow?: boolean;
  after?: number;
}

/** `flurry job logs`. */
export function logsCommand(): Command {
  const command = new Command("logs")
    .summary("Show what tasks printed")
    .description("Shows what tasks printed, each line with the index of its task")
    .argument("<job>", "id of the job")
    .option("-f, --follow", "wait for more until the job has ended")
    .option("--task <n>", "only of this task, as it printed it", wholeNumber("--task"))
    .option("--after <id>", "only what came after this piece", wholeNumber("--after"))
    .addHelpText(
      "after",
      "\nExamples:\n  flurry job logs -f job_…\n  flurry job logs job_… --task 3 > three.log",
    )
    .action((id: string, options: FollowOptions & { task?: number }) => logs(id, options));
  return gatewayOptions(command);
}

/** `flurry job events`. */
export function eventsCommand(): Command {
  const command = new Command("events")
    .summary("Show what became of a job and its tasks")
    .description("Shows the changes of a job and its tasks, each with its reason")
    .argument("<job>", "id of the job")
    .option("-f, --follow", "wait for more until the job has ended")
    .option("--after <id>", "only what came after this event", wholeNumber("--after"))
    .addHelpText("after", "\nExamples:\n  flurry job events -f job_…\n  flurry job events job_… --json")
    .action((id: string, options: FollowOptions) => events(id, options));
  return gatewayOptions(command);
}

/** `flurry job results`. */
export function resultsCommand(): Command {
  const orders = ["index", "completion"] as const;
  const command = new Command("results")
    .summary("Show how tasks ended, and what they returned or printed")
    .description(
      "Shows how tasks ended, what those of JS workers returned, and the first 64 KiB that each printed. Ends with 4 if a task failed",
    )
    .argument("<job>", "id of the job")
    .option("-f, --follow", "wait for tasks that have not ended")
    .option("--order <order>", "index: as submitted; completion: as they ended", oneOf(orders), orders[0])
    .addHelpText(
      "after",
      "\nExamples:\n  flurry job results job_…\n  flurry job results -f --order completion job_… --json",
    )
    .action((id: string, options: FollowOptions & { order: (typeof orders)[number] }) =>
      results(id, options),
    );
  return gatewayOptions(command);
}

async function logs(id: string, options: FollowOptions & { task?: number }): Promise<void> {
  const { task, after, follow, json = false } = options;
  const sinks = { stdout: new PacedSink(process.stdout), stderr: new PacedSink(process.stderr) };
  const output = new Output({ json, out: sinks.stdout, err: sinks.stderr });
  const printer = new LogPrinter(output);
  for await (const chunk of gatewayClient(options).jobs.logs(id, { task, after, follow })) {
    output.emit({ event: "log", ...chunk });
    if (!json) {
      const plain = task !== undefined && chunk.stream !== "system";
      if (plain) sinks[chunk.stream === "stdout" ? "stdout" : "stderr"].write(chunk.text);
      else printer.print(chunk);
    }
    await Promise.all([sinks.stdout.drained, sinks.stderr.drained]);
  }
  printer.end();
}

async function events(id: string, options: FollowOptions): Promise<void> {
  const { after, follow = false, json = false } = options;
  const out = new PacedSink(process.stdout);
  const output = new Output({ json, out });
  for await (const event of gatewayClient(options).jobs.events(id, { after, follow })) {
    output.emit({ event: "event", ...event });
    output.print(eventLine(event));
    await out.drained;
  }
}

async function results(
  id: string,
  options: FollowOptions & { order: "index" | "completion" },
): Promise<void> {
  const { order, follow, json = false } = options;
  const out = new PacedSink(process.stdout);
  const output = new Output({ json, out });
  for await (const result of gatewayClient(options).jobs.results(id, { order, follow })) {
    showResult(output, result, id);
    if (result.state !== "succeeded") process.exitCode = 4;
    await out.drained;
  }
}

function eventLine({ at, type, reason, task, attempt, vm, error }: JobEvent): string {
  const what = task === undefined ? type : `${type} ${task}`;
  const which = attempt === undefined ? "" : `, attempt ${attempt}`;
  const where = vm === undefined ? "" : `, ${vm}`;
  const why = error ? ` (${error.code}: ${error.message})` : "";
  return `${at}  ${what}${which}${where}: ${reason}${why}`;
}

/** Shows the pieces of many tasks' outputs as whole lines. */
class LogPrinter {
  readonly #output: Output;
  readonly #lines = new Map<string, LinePrefixer>();
  readonly #encoder = new TextEncoder();

  constructor(output: Output) {
    this.#output = output;
  }

  print({ task, attempt, stream, text }: LogChunk): void {
    const key = `${task} ${attempt} ${stream}`;
    let prefixer = this.#lines.get(key);
    if (!prefixer) {
      prefixer = new LinePrefixer((lines) => {
        const shown = lines.map((line) => `[${task}] ${line}`).join("\n");
        if (stream === "stdout") this.#output.print(shown);
        else this.#output.note(shown);
      });
      this.#lines.set(key, prefixer);
      const [oldest] = this.#lines.keys();
      if (this.#lines.size > MAX_OPEN_LINES && oldest !== undefined) this.#close(oldest);
    }
    prefixer.write(this.#encoder.encode(text));
  }

  end(): void {
    for (const key of [...this.#lines.keys()]) this.#close(key);
  }

  #close(key: string): void {
    this.#lines.get(key)?.end();
    this.#lines.delete(key);
  }
}
