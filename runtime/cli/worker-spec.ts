import { readFileSync, statSync } from "node:fs";
import type { Command } from "commander";
import { FlurryError } from "../../errors/errors.ts";
import { MAX_FILE_BYTES, type WorkerSpecInput } from "../api/mod.ts";
import { environment, LAZY_TEXT, pair, positiveInteger, positiveNumber } from "./options.ts";

/** Options that say what VMs are made of. */
export interface ParentOptions {
  image?: string;
  file?: string[];
  warm?: string;
  memory?: number;
  lazy?: boolean;
  cpus?: number;
}

/** Options that say what runs a task, and where. */
export interface SpecOptions extends ParentOptions {
  secret?: Record<string, string>;
  env?: Record<string, string>;
  cwd?: string;
  timeout?: number;
  retries?: number;
}

type GuestFile = NonNullable<WorkerSpecInput["files"]>[number];

/** Adds the options that describe what VMs are made of. */
export function parentOptions(command: Command): Command {
  return command
    .option("--image <name>", "image to run in; a recipe without an image is built")
    .option(
      "--file <guestpath=hostpath>",
      "file that lies in the VM before it is warmed up (may be repeated)",
      collect,
    )
    .option("--warm <command>", "shell command that the parent runs before it is frozen")
    .option("--memory <MiB>", "memory of a guest (default: 512)", positiveInteger("--memory"))
    .option("--lazy", LAZY_TEXT)
    .option("--cpus <n>", "processors of a guest (default: 1)", positiveInteger("--cpus"));
}

/** Adds the options that describe a worker. */
export function specOptions(command: Command): Command {
  return parentOptions(command)
    .option("--cwd <dir>", "working directory in the guest")
    .option("--env <NAME=VALUE>", "variable for every task (may be repeated)", environment)
    .option("--secret <VAR=NAME>", "variable that holds a stored secret (may be repeated)", secret)
    .option("--timeout <seconds>", "longest time for one attempt", positiveNumber("--timeout"))
    .option("--retries <n>", "attempts after a failed one", wholeNumber("--retries"));
}

/** The worker that options and a command describe. @throws FlurryError BAD_ARGUMENT */
export function specOf(argv: readonly string[], options: SpecOptions): WorkerSpecInput {
  const { image, secret: secrets = {}, env = {}, cwd } = options;
  if (image === undefined) throw new FlurryError("BAD_ARGUMENT", "No image is named: --image NAME");
  if (argv.length === 0) {
    throw new FlurryError("BAD_ARGUMENT", "No command is given", {
      hint: "it comes after --, as in -- uname -a",
    });
  }
  return {
    image,
    command: [...argv],
    env,
    secrets,
    ...parentOf(options),
    ...(cwd !== undefined && { cwd }),
    ...attemptsOf(options),
  };
}

/** What VMs are made of, besides their image. @throws FlurryError BAD_ARGUMENT */
export function parentOf({ file = [], warm, memory, lazy, cpus }: ParentOptions) {
  return {
    files: guestFiles(file),
    ...(warm !== undefined && { warmUp: ["/bin/sh", "-c", warm] }),
    ...(memory !== undefined && { memoryMiB: memory }),
    ...(lazy && { memory: "lazy" as const }),
    ...(cpus !== undefined && { cpus }),
  };
}

/** Timeout and retries, which a job may set in place of its worker's. */
export function attemptsOf({ timeout, retries }: Pick<SpecOptions, "timeout" | "retries">) {
  return {
    ...(timeout !== undefined && { timeoutMs: Math.ceil(timeout * 1000) }),
    ...(retries !== undefined && { retry: { maxAttempts: retries + 1 } }),
  };
}

export function collect(value: string, previous: string[] = []): string[] {
  return [...previous, value];
}

/** Parser of an option that is a whole number from 0 on. */
export function wholeNumber(option: string): (value: string) => number {
  return (value) => {
    if (/^\d{1,15}$/.test(value)) return Number(value);
    throw new FlurryError("BAD_ARGUMENT", `${option} takes a whole number, not "${value}"`);
  };
}

/** Collects `--secret VAR=NAME`. */
export function secret(value: string, previous: Record<string, string> = {}): Record<string, string> {
  const [variable, name] = pair("--secret", "VAR=NAME", value);
  return { ...previous, [variable]: name };
}

function guestFiles(pairs: readonly string[]): GuestFile[] {
  let bytes = 0;
  return pairs.map((each) => {
    const [path, source] = pair("--file", "GUESTPATH=HOSTPATH", each);
    try {
      const { size, mode } = statSync(source);
      bytes += size;
      if (bytes > MAX_FILE_BYTES) throw new Error(`all files are more than ${MAX_FILE_BYTES} bytes`);
      return { path, base64: readFileSync(source).toString("base64"), mode: mode & 0o777 };
    } catch (cause) {
      const reason = cause instanceof Error ? cause.message : String(cause);
      throw new FlurryError("BAD_ARGUMENT", `Cannot take the file "${source}": ${reason}`, { cause });
    }
  });
}
