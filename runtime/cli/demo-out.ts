import { accessSync, constants, existsSync, statSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import { dirname, resolve } from "node:path";
import { codeOf, FlurryError } from "../../errors/errors.ts";

/**
 * Looks whether a file can be written, before minutes of work go into its content.
 *
 * @returns its absolute path
 * @throws FlurryError BAD_ARGUMENT
 */
export function requireWritable(file: string): string {
  const path = resolve(file);
  const exists = existsSync(path);
  try {
    if (exists && statSync(path).isDirectory()) throw new Error("it is a directory");
    if (exists) accessSync(path, constants.W_OK);
    else if (file.endsWith("/")) throw new Error("it names a directory");
    else accessSync(dirname(path), constants.W_OK | constants.X_OK);
  } catch (cause) {
    throw notWritable(file, cause);
  }
  return path;
}

/** @throws FlurryError NO_SPACE, BAD_ARGUMENT */
export async function writeOut(path: string, data: Uint8Array): Promise<void> {
  try {
    await writeFile(path, data);
  } catch (cause) {
    if (codeOf(cause) !== "ENOSPC") throw notWritable(path, cause);
    throw new FlurryError("NO_SPACE", `Cannot write "${path}": the disk is full`, { cause });
  }
}

function notWritable(file: string, cause: unknown): FlurryError {
  const reason = cause instanceof Error ? cause.message : String(cause);
  return new FlurryError("BAD_ARGUMENT", `Cannot write "${file}": ${reason}`, {
    cause,
    hint: "name a file that can be written with --out",
  });
}
