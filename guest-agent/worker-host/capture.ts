import { Buffer } from "node:buffer";
import { Console } from "node:console";
import { Writable } from "node:stream";
import type { LogLevel, LogStream } from "../protocol/worker/constants.ts";
import type { Records } from "./records.ts";
import { currentRequestId } from "./scope.ts";

/** What `console` has for each level; the rest of its methods write through these streams, too. */
const methodLevels: Readonly<Record<string, LogLevel>> = {
  debug: "debug",
  log: "info",
  info: "info",
  dir: "info",
  dirxml: "info",
  table: "info",
  count: "info",
  time: "info",
  timeEnd: "info",
  timeLog: "info",
  group: "info",
  groupCollapsed: "info",
  warn: "warn",
  error: "error",
  trace: "error",
  assert: "error",
};

/**
 * Makes log records of what the worker writes: `console`, `process.stdout` and `process.stderr`. Each
 * has its level and the request that it was written for.
 */
export function captureOutput(records: Records): void {
  let level: LogLevel | undefined;
  const take = (stream: LogStream, text: string) => {
    records.log({
      stream,
      level: level ?? (stream === "stdout" ? "info" : "error"),
      text: text.endsWith("\n") ? text.slice(0, -1) : text,
      requestId: currentRequestId(),
    });
  };
  const writable = (stream: LogStream) =>
    new Writable({
      decodeStrings: false,
      write(chunk: string | Uint8Array, _encoding, callback) {
        take(stream, textOf(chunk));
        callback();
      },
    });
  const inner = new Console({ stdout: writable("stdout"), stderr: writable("stderr"), colorMode: false });
  for (const [name, value] of Object.entries(inner)) {
    if (typeof value !== "function" || !(name in console)) continue;
    const method = (...args: unknown[]) => {
      const outer = level;
      level = methodLevels[name] ?? outer;
      try {
        value.apply(inner, args);
      } finally {
        level = outer;
      }
    };
    Object.defineProperty(console, name, { value: method, writable: true, configurable: true });
  }
  process.stdout.write = writer("stdout", take);
  process.stderr.write = writer("stderr", take);
}

/** As a stream's `write`: it may have an encoding, and a callback as second or third argument. */
function writer(stream: LogStream, take: (stream: LogStream, text: string) => void) {
  return (
    chunk: string | Uint8Array,
    second?: BufferEncoding | ((error?: Error | null) => void),
    third?: (error?: Error | null) => void,
  ): boolean => {
    take(stream, textOf(chunk));
    const callback = typeof second === "function" ? second : third;
    if (callback) queueMicrotask(() => callback());
    return true;
  };
}

function textOf(chunk: string | Uint8Array): string {
  return typeof chunk === "string" ? chunk : Buffer.from(chunk).toString("utf8");
}
