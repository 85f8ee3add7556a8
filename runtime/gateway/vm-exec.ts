import { isUtf8 } from "node:buffer";
import { MAX_EXEC_BYTES, type VmExec, type VmExecLine, type VmExecResult } from "../api/mod.ts";
import type { Vms } from "../workers/vms/port.ts";
import { isStillKnown } from "./auth.ts";
import type { GatewayContext, Principal } from "./context.ts";
import { HEARTBEAT_MS } from "./job-streams.ts";
import type { Pieces } from "./paged-body.ts";
import { problemOf } from "./problem.ts";
import { errnoOf, ofVm } from "./vm-errors.ts";

/** A program that runs in a VM. */
export type VmProgram = Awaited<ReturnType<Vms["exec"]>>;

type Stream = "stdout" | "stderr";

/**
 * Runs a program to its end, keeping the start of what it prints.
 *
 * @throws whatever the VM fails of
 */
export async function runToEnd(program: VmProgram, stdin: VmExec["stdin"]): Promise<VmExecResult> {
  const [exit, stdout, stderr] = await Promise.all([
    program.exited,
    firstOf(program.stdout),
    firstOf(program.stderr),
    feed(program, stdin),
  ]);
  return {
    ...shownExit(exit),
    ...{ stdout: stdout.text, stdoutTruncated: stdout.truncated },
    ...{ stderr: stderr.text, stderrTruncated: stderr.truncated },
  };
}

/**
 * What a program prints, as lines of JSON while it prints it, and at last how it ended. A reader that is slow holds
 * the program up.
 *
 * @param stop - ends the program; called when nobody reads on
 */
export function execLines(
  context: Pick<GatewayContext, "metrics" | "store">,
  asked: { program: VmProgram; stdin: VmExec["stdin"]; reader: Pick<Principal, "owner">; requestId: string },
  stop: () => void,
): Pieces {
  return (signal) => {
    // Not in the generator: of one that was never read, nothing runs.
    signal.addEventListener("abort", stop, { once: true });
    return lines(context, asked, signal);
  };
}

async function* lines(
  context: Pick<GatewayContext, "metrics" | "store">,
  { program, stdin, reader, requestId }: Parameters<typeof execLines>[1],
  signal: AbortSignal,
): AsyncGenerator<string> {
  using _counted = context.metrics.stream("exec");
  const fed = feed(program, stdin);
  // Awaited below; it may fail before.
  fed.catch(() => undefined);
  // Bun keeps even the head of an answer back until there is something of its body.
  yield "\n";
  try {
    for await (const piece of merged(program)) {
      if (signal.aborted || !(await isStillKnown(context, reader))) return;
      yield piece ? lineOf(textOrBase64(piece.stream, piece.chunk)) : "\n";
    }
    await fed;
    yield lineOf(shownExit(await program.exited) as VmExecLine);
  } catch (error) {
    if (signal.aborted) return;
    const { code, detail: message, hint } = problemOf(ofVm(error), requestId);
    yield lineOf({ error: { code, message, ...(hint !== undefined && { hint }) } });
  }
}

/** What comes of either output, and undefined after each silence. Both are given up with the iterator. */
async function* merged(
  program: VmProgram,
): AsyncGenerator<{ stream: Stream; chunk: Uint8Array } | undefined, void, undefined> {
  const readers = { stdout: program.stdout.getReader(), stderr: program.stderr.getReader() };
  const next = async (stream: Stream) => ({ stream, ...(await readers[stream].read()) });
  const reads = new Map<Stream, ReturnType<typeof next>>();
  const read = (stream: Stream) => {
    const reading = next(stream);
    // Raced below; when the other one is first, it fails unseen until its turn.
    reading.catch(() => undefined);
    reads.set(stream, reading);
  };
  read("stdout");
  read("stderr");
  try {
    while (reads.size > 0) {
      const first = await within(Promise.race(reads.values()), HEARTBEAT_MS);
      if (first?.done) reads.delete(first.stream);
      else if (first) {
        read(first.stream);
        yield { stream: first.stream, chunk: first.value! };
      } else yield undefined;
    }
  } finally {
    // What failed has been thrown by its read.
    for (const reader of Object.values(readers)) reader.cancel().catch(() => undefined);
  }
}

async function within<T>(work: Promise<T>, ms: number): Promise<T | undefined> {
  const { promise, resolve } = Promise.withResolvers<undefined>();
  const timer = setTimeout(() => resolve(undefined), ms);
  try {
    return await Promise.race([work, promise]);
  } finally {
    clearTimeout(timer);
  }
}

/** The first bytes of an output as text. All of it is read: who prints is not to be held up. */
async function firstOf(stream: ReadableStream<Uint8Array>): Promise<{ text: string; truncated: boolean }> {
  const decoder = new TextDecoder();
  let text = "";
  let bytes = 0;
  for await (const chunk of stream) {
    const left = Math.max(0, MAX_EXEC_BYTES - bytes);
    text += decoder.decode(chunk.subarray(0, left), { stream: true });
    bytes += chunk.byteLength;
  }
  const truncated = bytes > MAX_EXEC_BYTES;
  // A character that is cut in half is left out.
  return { text: truncated ? text : text + decoder.decode(), truncated };
}

async function feed(program: VmProgram, input: VmExec["stdin"]): Promise<void> {
  if (!program.stdin || input === undefined) return;
  const writer = program.stdin.getWriter();
  try {
    await writer.write(typeof input === "string" ? Buffer.from(input) : Buffer.from(input.base64, "base64"));
    await writer.close();
  } catch (error) {
    // A program need not read all; what matters is how it ends.
    if (errnoOf(error) !== "EPIPE") throw error;
  }
}

function textOrBase64(stream: Stream, chunk: Uint8Array): VmExecLine {
  const bytes = Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength);
  return isUtf8(bytes)
    ? { stream, text: bytes.toString("utf8") }
    : { stream, base64: bytes.toString("base64") };
}

function shownExit({
  code,
  signal,
}: Awaited<VmProgram["exited"]>): Pick<VmExecResult, "exitCode" | "signal"> {
  return signal === undefined ? { exitCode: code } : { signal };
}

function lineOf(line: VmExecLine): string {
  return `${JSON.stringify(line)}\n`;
}
