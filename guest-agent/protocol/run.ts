import type { Connection } from "./connection.ts";
import { type ExecOptions, type ExitStatus, startProcess } from "./process.ts";

export interface RunOptions extends Omit<ExecOptions, "stdin"> {
  /** Given to the program on stdin. */
  input?: string | Uint8Array | undefined;
  /** Bytes kept of stdout, and of stderr; what comes beyond is read and dropped. @default 1 MiB */
  maxBytes?: number | undefined;
}

/** How a program ended and what it wrote. */
export type RunResult = ExitStatus & {
  /** Decoded as UTF-8. */
  stdout: string;
  stderr: string;
  /** Whether `maxBytes` cut one of them. */
  truncated: boolean;
};

/** Runs a program to its end. A failing exit status is a result, not an error. */
export async function runProcess(
  connection: Connection,
  argv: readonly string[],
  options: RunOptions = {},
): Promise<RunResult> {
  const { input, maxBytes = 1 << 20, ...exec } = options;
  const child = await startProcess(connection, argv, { ...exec, stdin: input !== undefined });
  const [status, stdout, stderr] = await Promise.all([
    child.exited,
    collect(child.stdout, maxBytes),
    collect(child.stderr, maxBytes),
    child.stdin && input !== undefined ? feed(child.stdin, input) : undefined,
  ]);
  return {
    ...status,
    stdout: stdout.text,
    stderr: stderr.text,
    truncated: stdout.truncated || stderr.truncated,
  };
}

async function collect(
  stream: ReadableStream<Uint8Array>,
  max: number,
): Promise<{ text: string; truncated: boolean }> {
  const parts: Uint8Array[] = [];
  let kept = 0;
  let truncated = false;
  for await (const chunk of stream) {
    truncated ||= kept + chunk.length > max;
    if (kept < max) parts.push(chunk.subarray(0, max - kept));
    kept += chunk.length;
  }
  const decoder = new TextDecoder();
  const text = parts.map((part) => decoder.decode(part, { stream: true })).join("");
  return { text: text + decoder.decode(), truncated };
}

async function feed(stdin: WritableStream<Uint8Array>, input: string | Uint8Array): Promise<void> {
  const writer = stdin.getWriter();
  try {
    await writer.write(typeof input === "string" ? new TextEncoder().encode(input) : input);
    await writer.close();
  } catch (error) {
    // A program may end without reading all; what matters is its status.
    if (!isBrokenPipe(error)) throw error;
  }
}

function isBrokenPipe(error: unknown): boolean {
  return error instanceof Error && "errno" in error && error.errno === "EPIPE";
}
