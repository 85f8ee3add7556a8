import { type FileHandle, open } from "node:fs/promises";
import { FlurryError } from "../../errors/errors.ts";
import { PAGE_BYTES } from "../stream/format.ts";
import { ENTRY_BYTES, isZeroPage, PageTable, pageEntry } from "./page-table.ts";

/** Unit of reading. */
const CHUNK_BYTES = 1024 * 1024;
/** Unit of holes in a copy: small enough to keep most zero memory off the disk. */
const HOLE_BYTES = 64 * 1024;
const ZEROS = Buffer.alloc(CHUNK_BYTES);

/** A flat memory image: byte n of the file is byte n of the RAM block. */
export interface MemoryImage {
  path: string;
  bytes: number;
  table: PageTable;
}

export interface WaitOptions {
  signal?: AbortSignal | undefined;
}

/**
 * Hashes the pages of a flat memory image.
 *
 * @throws FlurryError ABORTED; IMAGE_CORRUPT when the file becomes shorter meanwhile
 */
export async function scanMemory(path: string, options: WaitOptions = {}): Promise<PageTable> {
  await using source = await open(path, "r");
  return await walk(source, undefined, options);
}

/** The hash of a flat memory image: `PageTable.root` of its pages. */
export async function hashMemory(path: string, options: WaitOptions = {}): Promise<string> {
  return (await scanMemory(path, options)).root;
}

/**
 * Copies a memory image into a new sparse file and hashes it on the way.
 *
 * @throws FlurryError NO_SPACE when the target's disk is full, IMAGE_CORRUPT when the source becomes
 * shorter meanwhile, ABORTED. The target is then incomplete and the caller's to remove.
 */
export async function copyMemory(from: string, to: string, options: WaitOptions = {}): Promise<MemoryImage> {
  await using source = await open(from, "r");
  await using target = await open(to, "wx", 0o640);
  try {
    const { size } = await source.stat();
    await target.truncate(size);
    const table = await walk(source, target, options);
    return { path: to, bytes: size, table };
  } catch (error) {
    if (!(error instanceof Error && "code" in error && error.code === "ENOSPC")) throw error;
    throw new FlurryError("NO_SPACE", `Cannot keep a memory image at "${to}": the disk is full`, {
      cause: error,
    });
  }
}

async function walk(
  source: FileHandle,
  target: FileHandle | undefined,
  options: WaitOptions,
): Promise<PageTable> {
  const { size } = await source.stat();
  const entries = Buffer.alloc(Math.ceil(size / PAGE_BYTES) * ENTRY_BYTES);
  const buffer = Buffer.alloc(CHUNK_BYTES);
  for (let offset = 0; offset < size; ) {
    if (options.signal?.aborted) {
      throw new FlurryError("ABORTED", "Aborted by the caller", { cause: options.signal.reason });
    }
    const { bytesRead } = await source.read(buffer, 0, CHUNK_BYTES, offset);
    const end = offset + bytesRead;
    if (bytesRead === 0 || (bytesRead % PAGE_BYTES !== 0 && end < size)) {
      // Not as if the rest were zeros: somebody has cut the file meanwhile.
      throw new FlurryError("IMAGE_CORRUPT", `A memory image of ${size} bytes ended after ${end}`);
    }
    const chunk = buffer.subarray(0, bytesRead);
    if (!isZero(chunk)) {
      hashPages(chunk, entries, (offset / PAGE_BYTES) * ENTRY_BYTES);
      if (target) await writeSparse(target, chunk, offset);
    }
    offset = end;
  }
  return new PageTable(entries);
}

function hashPages(chunk: Buffer, entries: Buffer, at: number): void {
  for (let start = 0; start < chunk.length; start += PAGE_BYTES) {
    const page = chunk.subarray(start, start + PAGE_BYTES);
    if (!isZeroPage(page)) pageEntry(page).copy(entries, at + (start / PAGE_BYTES) * ENTRY_BYTES);
  }
}

async function writeSparse(target: FileHandle, chunk: Buffer, offset: number): Promise<void> {
  for (let start = 0; start < chunk.length; ) {
    const end = runEnd(chunk, start);
    const run = chunk.subarray(start, end);
    if (!isZero(run.subarray(0, HOLE_BYTES))) {
      for (let done = 0; done < run.length; ) {
        done += (await target.write(run, done, run.length - done, offset + start + done)).bytesWritten;
      }
    }
    start = end;
  }
}

/** End of the longest run from `start` on of pieces that are all zero or all not. */
function runEnd(chunk: Buffer, start: number): number {
  const zero = isZero(chunk.subarray(start, start + HOLE_BYTES));
  let end = start + HOLE_BYTES;
  while (end < chunk.length && isZero(chunk.subarray(end, end + HOLE_BYTES)) === zero) end += HOLE_BYTES;
  return Math.min(end, chunk.length);
}

function isZero(bytes: Buffer): boolean {
  return bytes.equals(ZEROS.subarray(0, bytes.length));
}
