import { accessSync, constants, existsSync } from "node:fs";
import { mkdir } from "node:fs/promises";
import { join, resolve } from "node:path";
import { Command } from "commander";
import { FlurryError } from "../../errors/errors.ts";
import { resolveImage } from "../../guest-agent/image/mod.ts";
import { forkableVm } from "../jobs/forkable-vm.ts";
import { runTasks, type TaskEvent, type TaskResult } from "../jobs/run-tasks.ts";
import { taskWarmUp } from "../jobs/task.ts";
import { Host } from "../vm/host.ts";
import { reapLeftoverFiles } from "../vm/owner.ts";
import { formatMs } from "./format.ts";
import { LinePrefixer } from "./line-prefixer.ts";
import { environment, LAZY_TEXT, PEER_TEXT, peers, positiveInteger, positiveNumber } from "./options.ts";
import { Output } from "./output.ts";
import { PacedSink } from "./paced-sink.ts";
import { openSession } from "./session.ts";
import { cliSignal } from "./signal.ts";

interface RunOptions {
  image: string;
  count: number;
  children?: number;
  out?: string;
  memory: number;
  env: Record<string, string>;
  cwd?: string;
  timeout?: number;
  warm?: string;
  fresh?: boolean;
  lazy?: boolean;
  peer: string[];
  json?: boolean;
}

const EXAMPLES = `
Examples:
  flurry run --image base --count 4 -- sh -c 'echo task $FLURRY_TASK_INDEX of $FLURRY_TASK_COUNT'
  flurry run --image base --count 100 --out results -- sh -c 'seq $FLURRY_TASK_INDEX > /out/numbers'
  flurry run --peer 10.0.0.1:7400 --image base --count 4 -- hostname
  flurry run --image povray --count 8 --warm 'povray --version' --json -- povray --version

A task sees FLURRY_TASK_INDEX (from 0), FLURRY_TASK_COUNT, FLURRY_ATTEMPT and FLURRY_VM_ID. What it
leaves in /out comes to DIR/INDEX/. The exit code is 0 only if that of every task was, 4 if a task
failed.`;

/** `flurry run`: N tasks of one command, each in a child of its own. */
export function runCommand(): Command {
  return new Command("run")
    .summary("Run a command as N tasks, each in its own forked VM")
    .description("Runs a command as N tasks, each in its own forked VM")
    .requiredOption("--image <name>", "image to run in (see `flurry image ls`)")
    .option("--count <n>", "number of tasks", positiveInteger("--count"), 1)
    .option(
      "--children <n>",
      "most VMs at a time (default: what the host can take)",
      positiveInteger("--children"),
    )
    .option("--out <dir>", "directory for what tasks leave in /out")
    .option("--memory <MiB>", "memory of a guest", positiveInteger("--memory"), 512)
    .option("--env <NAME=VALUE>", "variable for every task (may be repeated)", environment, {})
    .option("--cwd <dir>", "working directory in the guest")
    .option("--timeout <seconds>", "longest time for one task", positiveNumber("--timeout"))
    .option("--warm <command>", "shell command that the parent runs before it is frozen")
    .option("--lazy", LAZY_TEXT)
    .option("--peer <host:port>", PEER_TEXT, peers, [])
    .option("--fresh", "boot a new parent even if a frozen one is on disk")
    .option("--json", "print JSON lines")
    .argument("<command...>", "command and arguments, after --")
    .addHelpText("after", EXAMPLES)
    .action((argv: string[], options: RunOptions) => run(argv, options));
}

async function run(argv: string[], options: RunOptions): Promise<void> {
  const signal = cliSignal();
  const out = new PacedSink(process.stdout);
  const err = new PacedSink(process.stderr);
  const output = new Output({ json: options.json ?? false, out, err });
  const outDir = options.out === undefined ? undefined : await makeOutDir(options.out, options.count);
  await using host = await Host.open({ signal });
  const image = await resolveImage(host.home, options.image);
  await using session = await openSession({
    host,
    image,
    output,
    memMiB: options.memory,
    children: options.children,
    warmUp: taskWarmUp(options.warm === undefined ? [] : ["/bin/sh", "-c", options.warm]),
    fresh: options.fresh,
    memory: options.lazy ? "lazy" : "mapped",
    peers: options.peer,
    shells: Math.min(options.children ?? host.cores, options.count),
    signal,
  });
  const began = performance.now();
  using progress = output.progress("Tasks", options.count);
  const show = new TaskPrinter(output);
  const results = await runTasks({
    start: (start) => forkableVm(session.parent, session.admission, start),
    admission: session.admission,
    count: options.count,
    name: options.image.replace(/[^a-zA-Z0-9-]/g, "-").slice(0, 32),
    task: (index) => ({
      argv,
      env: options.env,
      cwd: options.cwd,
      outDir: outDir === undefined ? undefined : join(outDir, String(index)),
      timeoutMs: options.timeout === undefined ? undefined : options.timeout * 1000,
    }),
    onEvent: async (event) => {
      show.event(event);
      if (event.event === "ended") progress.advance();
      // A task that prints faster than the reader reads is held up, all the way into its VM.
      await Promise.all([out.drained, err.drained]);
    },
    signal,
  });
  const failed = results.filter((result) => result.state === "failed");
  const succeeded = results.length - failed.length;
  const totalMs = performance.now() - began;
  progress.finish(`${succeeded} of ${results.length} tasks succeeded in ${formatMs(totalMs)}`);
  output.emit({ event: "done", succeeded, failed: failed.length, totalMs });
  if (failed.length > 0) process.exitCode = 4;
}

/** Shows what tasks print and how they end. */
class TaskPrinter {
  readonly #output: Output;
  readonly #lines = new Map<string, LinePrefixer>();

  constructor(output: Output) {
    this.#output = output;
  }

  event(event: TaskEvent): void {
    switch (event.event) {
      case "started":
        this.#output.emit(event);
        return;
      case "output":
        this.#prefixer(event.task, event.stream).write(event.chunk);
        return;
      case "ended":
        for (const stream of ["stdout", "stderr"] as const) this.#prefixer(event.task, stream).end();
        this.#ended(event.result);
    }
  }

  #ended(result: TaskResult): void {
    this.#output.emit({ event: "ended", task: result.index, ...result });
    if (result.state === "succeeded") return;
    const { outcome, error } = result;
    if (error) {
      this.#output.note(`[${result.index}] failed: ${error.message} (${error.code})`);
    } else {
      const how = outcome?.signal ? `signal ${outcome.signal}` : `exit status ${outcome?.code}`;
      this.#output.note(`[${result.index}] failed: ${how}`);
    }
  }

  #prefixer(task: number, stream: "stdout" | "stderr"): LinePrefixer {
    const key = `${task} ${stream}`;
    const known = this.#lines.get(key);
    if (known) return known;
    const made = new LinePrefixer((lines) => {
      for (const line of lines) this.#output.emit({ event: stream, task, line });
      const text = lines.map((line) => `[${task}] ${line}`).join("\n");
      if (stream === "stdout") this.#output.print(text);
      else this.#output.note(text);
    });
    this.#lines.set(key, made);
    return made;
  }
}

/** Refuses to mix outputs with those of an earlier run: nothing is ever overwritten. */
async function makeOutDir(dir: string, count: number): Promise<string> {
  const path = resolve(dir);
  for (let index = 0; index < count; index++) {
    if (!existsSync(join(path, String(index)))) continue;
    throw new FlurryError(
      "BAD_ARGUMENT",
      `Cannot write to "${dir}": it holds the outputs of task ${index} already`,
      { hint: "name another directory with --out, or remove that one" },
    );
  }
  try {
    await mkdir(path, { recursive: true });
    accessSync(path, constants.W_OK | constants.X_OK);
    reapLeftoverFiles(path);
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new FlurryError("BAD_ARGUMENT", `Cannot write to "${dir}": ${reason}`, { cause });
  }
  return path;
}
