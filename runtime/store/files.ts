import { open } from "node:fs/promises";
import { codeOf, FlurryError } from "../../errors/errors.ts";

/** Makes durable what has been created, renamed or removed in a directory. */
export async function syncDirectory(path: string): Promise<void> {
  await using handle = await open(path, "r");
  await handle.sync();
}

/**
 * Runs what works on files of the store.
 *
 * @param what - what cannot be done when it fails, such as `Cannot store blob "x"`
 * @throws FlurryError NO_SPACE on a full disk or quota, else STORE_FAILED
 */
export async function onFiles<T>(what: string, operation: () => Promise<T>): Promise<T> {
  try {
    return await operation();
  } catch (error) {
    if (error instanceof FlurryError) throw error;
    const code = codeOf(error);
    if (code === "ENOSPC" || code === "EDQUOT")
      throw new FlurryError("NO_SPACE", `${what}: the disk is full`, { cause: error });
    const message = error instanceof Error ? error.message : String(error);
    throw new FlurryError("STORE_FAILED", `${what}: ${message}`, { cause: error });
  }
}
