import { createHash } from "node:crypto";
import { type FileHandle, open } from "node:fs/promises";
import { FlurryError } from "../errors/errors.ts";

/** Unit of reading, and of the hash. */
const CHUNK_BYTES = 1024 * 1024;
/** Unit of holes in a copy: small enough to keep most zero memory off the disk. */
const HOLE_BYTES = 64 * 1024;
const ZEROS = Buffer.alloc(CHUNK_BYTES);
/** Stands for the digest of a chunk of zeros, which is most of a fresh guest's memory. */
const ZERO_DIGEST = Buffer.alloc(32);

/** A flat memory image: byte n of the file is byte n of the RAM block. */
export interface MemoryImage {
  path: string;
  bytes: number;
  /** Hex, see `hashMemory`. */
  hash: string;
}

export interface WaitOptions {
  signal?: AbortSignal | undefined;
}

/**
 * Hash of a flat memory image: SHA-256 over the SHA-256 of each 1 MiB chunk in order, where a chunk
 * of zeros counts as 32 zero bytes. Hex.
 *
 * @throws FlurryError ABORTED
 */
export async function hashMemory(path: string, options: WaitOptions = {}): Promise<string> {
  await using source = await open(path, "r");
  return await walk(source, undefined, options);
}

/**
 * Copies a memory image into a new sparse file and hashes it on the way.
 *
 * @throws FlurryError NO_SPACE when the target's disk is full, ABORTED. The target is then incomplete and
 * the caller's to remove.
 */
export async function copyMemory(from: string, to: string, options: WaitOptions = {}): Promise<MemoryImage> {
  await using source = await open(from, "r");
  await using target = await open(to, "wx", 0o640);
  try {
    const { size } = await source.stat();
    await target.truncate(size);
    const hash = await walk(source, target, options);
    return { path: to, bytes: size, hash };
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
): Promise<string> {
  const root = createHash("sha256");
  const buffer = Buffer.alloc(CHUNK_BYTES);
  for (let offset = 0; ; ) {
    if (options.signal?.aborted) {
      throw new FlurryError("ABORTED", "Aborted by the caller", { cause: options.signal.reason });
    }
    const { bytesRead } = await source.read(buffer, 0, CHUNK_BYTES, offset);
    if (bytesRead === 0) return root.digest("hex");
    const chunk = buffer.subarray(0, bytesRead);
    const empty = isZero(chunk);
    root.update(empty ? ZERO_DIGEST : createHash("sha256").update(chunk).digest());
    if (target && !empty) await writeSparse(target, chunk, offset);
    offset += bytesRead;
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
