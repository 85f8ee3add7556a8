import { statfsSync } from "node:fs";
import { FlurryError } from "../../errors/errors.ts";
import type { Database } from "./database.ts";
import { storeError } from "./store-error.ts";

/** What SQLite needs at most to remove rows again: its journal, and the pages that the journal's end brings. */
const RESERVE_BYTES = 16 * 1024 * 1024;

/**
 * Sees to it that what is arriving leaves some room: a disk that it had filled to the last byte would not
 * even let it be removed.
 *
 * @throws FlurryError NO_SPACE, STORE_FAILED
 */
export function assertDiskSpace(database: Database): void {
  const { file } = database;
  const onDisk = freeBytes(file);
  if (onDisk >= RESERVE_BYTES) return;
  // The file does not shrink: what was removed is room in it.
  const { freelist_count: pages } = database.get<{ freelist_count: number }>("PRAGMA freelist_count")!;
  const { page_size: size } = database.get<{ page_size: number }>("PRAGMA page_size")!;
  if (onDisk + pages * size >= RESERVE_BYTES) return;
  throw new FlurryError("NO_SPACE", `Too little space is left for jobs in ${file}: ${onDisk} bytes`, {
    hint: "free space; nothing has been lost",
  });
}

function freeBytes(file: string): number {
  try {
    const { bavail, bsize } = statfsSync(file);
    return bavail * bsize;
  } catch (error) {
    throw storeError(error, file);
  }
}
