#!/usr/bin/env -S bun
import { Command, CommanderError } from "commander";
import { codeOf, describeError, type ErrorReport, FlurryError } from "../../errors/errors.ts";
import { cliSignal, listenForSignals } from "./signal.ts";

/** Each command is the file `NAME.ts` beside this one, which exports `NAMECommand()`. */
const commands = {
  demo: "Render a picture in forked VMs and show how long each step takes",
  run: "Run a command as N tasks, each in its own forked VM",
  dev: "Run a JS worker in forked VMs, and load it anew when it changes",
  deploy: "Deploy a JS worker to a gateway, which answers requests with forks of it",
  serve: "Run the gateway: take jobs over HTTP and run their tasks in forked VMs",
  job: "Submit jobs to a gateway, and see what becomes of them",
  worker: "Deploy workers, which jobs run by their name",
  vm: "Make VMs on a gateway, fork and use them, and see how they have proven themselves",
  secret: "Store values that tasks get as variables",
  key: "Make, list and remove the keys of a gateway",
  memserver: "Give frozen parents to other hosts, page by page",
  image: "Build, list and remove the images that VMs boot",
  bench: "Measure forks and the gateway on this machine",
  doctor: "Show what Flurry needs, what was found, and what to do",
  test: "Run the tests",
} as const;

type CommandName = keyof typeof commands;

await main(process.argv.slice(2));

async function main(argv: readonly string[]): Promise<void> {
  listenForSignals();
  // A reader that went away, as in `flurry doctor | head -1`, is no failure of ours.
  process.stdout.on("error", (error) => {
    if (codeOf(error) === "EPIPE") process.exit(0);
    throw error;
  });
  const exitCode = await runCli(argv);
  await end(process.stdout);
  await end(process.stderr);
  process.exit(exitCode);
}

async function runCli(argv: readonly string[]): Promise<number> {
  try {
    const program = await buildProgram(argv);
    await program.parseAsync([...argv], { from: "user" });
    return Number(process.exitCode ?? 0);
  } catch (error) {
    // Commander throws for --help and --version too, after it has printed them.
    if (error instanceof CommanderError && error.exitCode === 0) return 0;
    const report = reportOf(error);
    writeReport(report, wantsJson(argv));
    return report.exitCode;
  }
}

/** Only the command that is named gets loaded: the others stand in the help with their summary. */
async function buildProgram(argv: readonly string[]): Promise<Command> {
  const program = new Command("flurry");
  program.description("Forks virtual machines: boot once, then start each task from a warm copy");
  program.version(await readVersion());
  program.helpCommand("help [command]", "Show what a command does and its options");
  program.addHelpText("after", "\nStart with: flurry demo");
  const named = namedCommand(argv);
  for (const [name, summary] of Object.entries(commands)) {
    program.addCommand(name === named ? await loadCommand(name) : new Command(name).summary(summary));
  }
  program.action((_options: unknown, self: Command) => {
    if (self.args.length > 0) throw new FlurryError("BAD_ARGUMENT", `Unknown command "${self.args[0]}"`);
    self.outputHelp();
  });
  program.allowExcessArguments();
  for (const command of [program, ...program.commands]) throwInsteadOfExit(command);
  return program;
}

/** The command in the arguments; that of `help NAME` too. */
function namedCommand(argv: readonly string[]): CommandName | undefined {
  for (const argument of argv) {
    if (argument === "--") return undefined;
    if (argument.startsWith("-") || argument === "help") continue;
    return Object.hasOwn(commands, argument) ? (argument as CommandName) : undefined;
  }
  return undefined;
}

async function loadCommand(name: CommandName): Promise<Command> {
  const module: Record<string, unknown> = await import(`./${name}.ts`);
  const create = module[`${name}Command`];
  if (typeof create !== "function") throw new TypeError(`runtime/cli/${name}.ts exports no ${name}Command()`);
  const command: Command = create();
  return command.summary(commands[name]);
}

function throwInsteadOfExit(command: Command): void {
  command.exitOverride();
  // The message is shown once, by writeReport.
  command.configureOutput({ outputError: () => undefined });
  for (const child of command.commands) throwInsteadOfExit(child);
}

function reportOf(error: unknown): ErrorReport {
  if (error instanceof CommanderError) {
    const message = error.message.replace(/^error: /, "");
    const sentence = message.charAt(0).toUpperCase() + message.slice(1);
    const hint = "flurry --help lists the commands, flurry COMMAND --help their options";
    return describeError(new FlurryError("BAD_ARGUMENT", sentence, { hint }));
  }
  // An interrupted command may fail with whatever broke first: what the user did is the reason.
  if (cliSignal().aborted) return describeError(cliSignal().reason);
  if (process.env.FLURRY_DEBUG) process.stderr.write(`${error instanceof Error ? error.stack : error}\n`);
  return describeError(error);
}

/** With `--json` the error is the last line of the same stream as the results. */
function writeReport(report: ErrorReport, json: boolean): void {
  if (json) {
    const { code, message, hint } = report;
    process.stdout.write(`${JSON.stringify({ event: "error", code, message, hint })}\n`);
    return;
  }
  const hint = report.hint === undefined ? "" : `  ${report.hint}\n`;
  process.stderr.write(`flurry: ${report.message}\n${hint}  code: ${report.code}\n`);
}

function wantsJson(argv: readonly string[]): boolean {
  const end = argv.indexOf("--");
  return argv.slice(0, end === -1 ? argv.length : end).includes("--json");
}

async function readVersion(): Promise<string> {
  const { default: manifest } = await import("../../package.json", { with: { type: "json" } });
  return manifest.version;
}

/** Waits until everything is written. On Bun the end alone tells: a write's callback comes too early. */
function end(stream: NodeJS.WriteStream): Promise<void> {
  return new Promise((resolve) => stream.end(() => resolve()));
}
