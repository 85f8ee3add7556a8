import { constants } from "node:os";
import { Command } from "commander";
import { FlurryError } from "../../errors/errors.ts";
import type { VmExecInput, VmOutput } from "../client/mod.ts";
import { type GatewayOptions, gatewayClient, gatewayOptions } from "./gateway-client.ts";
import { environment, positiveNumber } from "./options.ts";
import { Output } from "./output.ts";
import { PacedSink } from "./paced-sink.ts";
import { cliSignal } from "./signal.ts";

/** Most bytes of a standard input: it is sent as a whole. */
const MAX_STDIN_BYTES = 16 * 1024 * 1024;
/** Added to the number of the signal that ended a program, as shells do. */
const SIGNAL_EXIT = 128;

interface ExecOptions extends GatewayOptions {
  env?: Record<string, string>;
  cwd?: string;
  timeout?: number;
  stdin?: boolean;
}

const EXAMPLES = `
Examples:
  flurry vm exec vm-0123456789ab -- uname -a
  flurry vm exec vm-0123456789ab --cwd /srv --env A=1 -- sh -c 'echo $A; pwd'
  echo 'select 1' | flurry vm exec -i vm-0123456789ab -- sqlite3 /data.db

What the program prints comes as it prints it. The exit code is the program's, 128 and its signal's number if it was
killed by one. Who interrupts this command ends the program.`;

/** `flurry vm exec`. */
export function execCommand(): Command {
  const command = new Command("exec")
    .summary("Run a program in a VM")
    .description("Runs a program in a VM, and shows what it prints. Exits as the program does")
    .argument("<id>", "of the VM")
    .argument("<argv...>", "program and arguments, after --")
    .option("--env <NAME=VALUE>", "variable of the program (may be repeated)", environment)
    .option("--cwd <dir>", "working directory in the guest (default: /)")
    .option("--timeout <seconds>", "longest time for it", positiveNumber("--timeout"))
    .option("-i, --stdin", "give it the standard input, of at most 16 MiB")
    .addHelpText("after", EXAMPLES)
    .action((id: string, argv: string[], options: ExecOptions) => exec(id, argv, options));
  return gatewayOptions(command);
}

async function exec(id: string, argv: string[], options: ExecOptions): Promise<void> {
  const { env = {}, cwd, timeout, json = false } = options;
  const sinks = { stdout: new PacedSink(process.stdout), stderr: new PacedSink(process.stderr) };
  const output = new Output({ json, out: sinks.stdout, err: sinks.stderr });
  const program: VmExecInput = {
    ...{ argv, env },
    ...(cwd !== undefined && { cwd }),
    ...(timeout !== undefined && { timeoutMs: Math.ceil(timeout * 1000) }),
    ...(options.stdin && { stdin: { base64: await readStdin() } }),
  };
  for await (const piece of gatewayClient(options).vms.execStream(id, program, { signal: cliSignal() })) {
    output.emit(eventOf(piece));
    if ("bytes" in piece) {
      if (!json) sinks[piece.stream].write(piece.bytes);
      await Promise.all([sinks.stdout.drained, sinks.stderr.drained]);
    } else process.exitCode = exitCodeOf(piece);
  }
}

function eventOf(piece: VmOutput): object {
  if (!("bytes" in piece)) return { event: "exit", ...piece };
  return { event: "output", stream: piece.stream, base64: Buffer.from(piece.bytes).toString("base64") };
}

/** As a shell has it. */
export function exitCodeOf(end: { exitCode: number } | { signal: string }): number {
  if ("exitCode" in end) return end.exitCode;
  const signals: Readonly<Record<string, number>> = constants.signals;
  return SIGNAL_EXIT + (signals[end.signal] ?? 0);
}

async function readStdin(): Promise<string> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of process.stdin) {
    bytes += chunk.length;
    if (bytes > MAX_STDIN_BYTES) {
      throw new FlurryError("BAD_ARGUMENT", `The standard input has more than ${MAX_STDIN_BYTES} bytes`, {
        hint: "copy it into the VM first: flurry vm cp FILE ID:PATH",
      });
    }
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString("base64");
}
