import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { codeOf, FlurryError } from "../../errors/errors.ts";
import { makePrivate } from "./database.ts";
import { storeError } from "./store-error.ts";

/**
 * Makes a data directory this process's own until it is disposed of, or until the process is gone, however
 * that came.
 *
 * The lock is an exclusive transaction of SQLite on a file of its own: the kernel releases it with the
 * process, and SQLite, which knows all locks of its process, refuses it to a second opener of the same
 * process too. Nothing else may open that file: closing it would release the lock (so it is with POSIX
 * locks), which is why the holder's pid lies in a second one.
 *
 * @throws FlurryError DATA_IN_USE
 */
export function lockDirectory(dir: string): Disposable {
  const file = join(dir, "lock");
  const pidFile = join(dir, "lock.pid");
  try {
    makePrivate(file);
    const lock = new DatabaseSync(file, { timeout: 0 });
    try {
      lock.exec("BEGIN EXCLUSIVE");
      writeFileSync(pidFile, `${process.pid}\n`, { mode: 0o600 });
    } catch (error) {
      lock.close();
      throw error;
    }
    return { [Symbol.dispose]: () => lock.close() };
  } catch (error) {
    if (isBusy(error)) throw inUse(dir, pidFile);
    throw storeError(error, file);
  }
}

function isBusy(error: unknown): boolean {
  return (
    codeOf(error) === "ERR_SQLITE_ERROR" && error instanceof Error && error.message === "database is locked"
  );
}

function inUse(dir: string, pidFile: string): FlurryError {
  return new FlurryError("DATA_IN_USE", `${dir} is in use by ${holder(pidFile)}`, {
    hint: "stop that gateway, or give another --data directory",
  });
}

function holder(pidFile: string): string {
  try {
    return `process ${readFileSync(pidFile, "utf8").trim()}`;
  } catch (error) {
    // It has the lock and is just about to write its pid.
    if (codeOf(error) === "ENOENT") return "another process";
    throw error;
  }
}
