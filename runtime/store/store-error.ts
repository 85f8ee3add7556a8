import { rmSync, writeFileSync } from "node:fs";
import { codeOf, FlurryError } from "../../errors/errors.ts";

/** SQLite's result codes: the low byte of an extended one. */
const SQLITE_IOERR = 10;
const SQLITE_FULL = 13;
const full: ReadonlySet<string | undefined> = new Set(["ENOSPC", "EDQUOT"]);

/**
 * What a failure of SQLite or of the file system means for the store.
 *
 * @param file - that was worked on, for the message
 */
export function storeError(error: unknown, file: string): unknown {
  if (error instanceof FlurryError || !(error instanceof Error)) return error;
  const code = codeOf(error);
  // A call with arguments that no statement takes is a mistake of ours, not the store's.
  if (code === undefined || code.startsWith("ERR_INVALID_ARG")) return error;
  if (full.has(code) || isFull(error, file)) {
    const hint = "free space; nothing has been lost";
    return new FlurryError("NO_SPACE", `No space left to record in ${file}`, { cause: error, hint });
  }
  return new FlurryError("STORE_FAILED", `The store failed at ${file}: ${error.message}`, { cause: error });
}

function isFull(error: Error, file: string): boolean {
  const { result, message } = { result: resultOf(error), message: error.message };
  if (result === SQLITE_FULL || message.startsWith("database or disk is full")) return true;
  // A quota that is used up is just "an I/O error" to SQLite, and so is a disk that is full at some places.
  return (result === SQLITE_IOERR || message.startsWith("disk I/O error")) && probeIsFull(file);
}

/** Bun (as Node) has SQLite's code; Deno has only its message. */
function resultOf(error: Error): number | undefined {
  return "errcode" in error && typeof error.errcode === "number" ? error.errcode & 0xff : undefined;
}

function probeIsFull(file: string): boolean {
  const probe = `${file}-probe`;
  try {
    writeFileSync(probe, new Uint8Array(64 * 1024), { mode: 0o600 });
    return false;
  } catch (error) {
    return full.has(codeOf(error));
  } finally {
    rmSync(probe, { force: true });
  }
}
