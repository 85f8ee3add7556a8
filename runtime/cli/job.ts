import { Command } from "commander";
import { type GatewayOptions, gatewayClient, gatewayOptions } from "./gateway-client.ts";
import { artifactsCommand } from "./job-artifacts.ts";
import { getCommand, listCommand } from "./job-show.ts";
import { eventsCommand, logsCommand, resultsCommand } from "./job-streams.ts";
import { submitCommand } from "./job-submit.ts";
import { waitFor } from "./job-wait.ts";
import { Output } from "./output.ts";
import { PacedSink } from "./paced-sink.ts";
import { wholeNumber } from "./worker-spec.ts";

/** `flurry job …`: jobs of a gateway. */
export function jobCommand(): Command {
  const command = new Command("job").description("Submits jobs to a gateway, and shows what becomes of them");
  command.addCommand(submitCommand());
  command.addCommand(listCommand());
  command.addCommand(getCommand());
  command.addCommand(logsCommand());
  command.addCommand(eventsCommand());
  command.addCommand(resultsCommand());
  command.addCommand(artifactsCommand());
  addWait(command);
  addCancel(command);
  addRetry(command);
  addRemove(command);
  command.addHelpText(
    "after",
    "\nA gateway runs with: flurry serve. Its key, if it needs one, is $FLURRY_KEY.",
  );
  return command;
}

function addWait(command: Command): void {
  const wait = command
    .command("wait")
    .summary("Show how a job goes on until it has ended, and its results")
    .description("Shows how a job goes on until it has ended, then its results. Ends with 4 if a task failed")
    .argument("<job>", "id of the job")
    .addHelpText("after", "\nExamples:\n  flurry job wait job_…")
    .action(async (id: string, options: GatewayOptions) => {
      const out = new PacedSink(process.stdout);
      const output = new Output({ json: options.json ?? false, out });
      const client = gatewayClient(options);
      await waitFor(client, await client.jobs.get(id), { output, out });
    });
  gatewayOptions(wait);
}

function addCancel(command: Command): void {
  const cancel = command
    .command("cancel")
    .summary("Cancel jobs")
    .description("Cancels jobs: tasks that wait are canceled, running ones are ended")
    .argument("<job...>", "ids of jobs")
    .addHelpText("after", "\nExamples:\n  flurry job cancel job_…")
    .action(async (ids: string[], options: GatewayOptions) => {
      const output = new Output({ json: options.json ?? false });
      const client = gatewayClient(options);
      for (const id of ids) {
        const job = await client.jobs.cancel(id);
        output.emit({ event: "job", ...job });
        output.print(`${job.id} ${job.state}`);
      }
    });
  gatewayOptions(cancel);
}

function addRetry(command: Command): void {
  const retry = command
    .command("retry")
    .summary("Run failed and canceled tasks again")
    .description("Queues the failed and canceled tasks of a job that has ended again, with all attempts")
    .argument("<job>", "id of the job")
    .option("--task <n>", "only this task", wholeNumber("--task"))
    .addHelpText("after", "\nExamples:\n  flurry job retry job_… && flurry job wait job_…")
    .action(async (id: string, options: GatewayOptions & { task?: number }) => {
      const output = new Output({ json: options.json ?? false });
      const job = await gatewayClient(options).jobs.retry(id, { index: options.task });
      output.emit({ event: "job", ...job });
      output.print(`${job.id} ${job.state}`);
    });
  gatewayOptions(retry);
}

function addRemove(command: Command): void {
  const remove = command
    .command("rm")
    .summary("Remove jobs that have ended")
    .description("Removes jobs that have ended, with their results, logs and artifacts")
    .argument("<job...>", "ids of jobs")
    .addHelpText("after", "\nExamples:\n  flurry job rm job_…")
    .action(async (ids: string[], options: GatewayOptions) => {
      const output = new Output({ json: options.json ?? false });
      const client = gatewayClient(options);
      for (const id of ids) {
        await client.jobs.remove(id);
        output.emit({ event: "removed", job: id });
        output.print(`Removed ${id}`);
      }
    });
  gatewayOptions(remove);
}
