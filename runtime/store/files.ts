import { open } from "node:fs/promises";
import { storeError } from "./store-error.ts";

/** Makes durable what has been created, renamed or removed in a directory. */
export async function syncDirectory(path: string): Promise<void> {
  await using handle = await open(path, "r");
  await handle.sync();
}

/**
 * Runs what works on files of the store.
 *
 * @param file - that is worked on, for the message
 * @throws FlurryError NO_SPACE on a full disk or quota, else STORE_FAILED
 */
export async function onFiles<T>(file: string, operation: () => Promise<T>): Promise<T> {
  try {
    return await operation();
  } catch (error) {
    throw storeError(error, file);
  }
}
