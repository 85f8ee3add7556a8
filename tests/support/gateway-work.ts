import { createHash } from "node:crypto";
import type { Script } from "./scripted-runtime.ts";

/** What a task of a campaign does, so that all that it leaves can be told from its input. */
export interface Work {
  /** Unlike that of any other task. */
  name: string;
  ms: number;
  /** Attempts that end with exit status 1. */
  failures: number;
  /** Size of the file `sub/file` that it leaves in /out; 0 for none. */
  bytes: number;
}

/** Its input: a string, padded to at least `length` characters. */
export function inputOf({ name, ms, failures, bytes }: Work, length = 0): string {
  return `${name} ${(ms / 1000).toFixed(3)} ${failures} ${bytes} `.padEnd(length, "x");
}

export function workOf(input: string): Work {
  const [name = "", seconds, failures, bytes] = input.split(" ");
  return { name, ms: Number(seconds) * 1000, failures: Number(failures), bytes: Number(bytes) };
}

/** The command that does it in a VM. */
export const WORK_SCRIPT = `
set -- $FLURRY_TASK_INPUT
echo "$FLURRY_TASK_INDEX $1"
if [ "$4" -gt 0 ]; then mkdir /out/sub; yes "$1" | head -c "$4" > /out/sub/file; fi
sleep "$2"
echo "attempt $FLURRY_ATTEMPT"
[ "$FLURRY_ATTEMPT" -gt "$3" ]`;

/** The same without a VM. */
export const scriptedWork: Script = async ({ index, stdin, number, signal, print, leave }) => {
  const { name, ms, failures, bytes } = workOf(new TextDecoder().decode(stdin));
  await print(`${index} ${name}\n`);
  if (bytes > 0) await leave("sub/file", fileOf({ name, bytes }));
  if (ms > 0) await pause(ms, signal);
  await print(`attempt ${number}\n`);
  return { exitCode: number > failures ? 0 : 1 };
};

/** What is left of it in the end. */
export function expectedOf(index: number, input: string, maxAttempts: number) {
  const work = workOf(input);
  const attempt = Math.min(work.failures + 1, maxAttempts);
  const exitCode = attempt > work.failures ? 0 : 1;
  return {
    attempt,
    exitCode,
    state: exitCode === 0 ? ("succeeded" as const) : ("failed" as const),
    stdout: `${index} ${work.name}\nattempt ${attempt}\n`,
    file: work.bytes === 0 ? undefined : { size: work.bytes, sha256: sha256(fileOf(work)) },
  };
}

function fileOf({ name, bytes }: Pick<Work, "name" | "bytes">): string {
  return `${name}\n`.repeat(Math.ceil(bytes / (name.length + 1))).slice(0, bytes);
}

function sha256(text: string): string {
  return createHash("sha256").update(text).digest("hex");
}

/** Waits; an abort ends it early. */
export async function pause(ms: number, signal: AbortSignal): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>();
  const timer = setTimeout(resolve, ms);
  signal.addEventListener("abort", () => resolve(), { once: true });
  await promise;
  clearTimeout(timer);
}
