import { chmodSync } from "node:fs";
import { open, rm } from "node:fs/promises";
import { codeOf, FlurryError } from "../../errors/errors.ts";
import { PAGE_BYTES } from "../../memserver/stream/format.ts";
import type { Host } from "../vm/host.ts";
import { throwIfAborted } from "../vm/qemu-process.ts";
import { makeRamFile } from "./boot.ts";
import type { Delta } from "./ram-mapping.ts";

const CHUNK_BYTES = 1024 * 1024;
const ZEROS = Buffer.alloc(CHUNK_BYTES);

/** A memory image in a tmpfs, which goes when it is disposed of. Whoever maps it keeps it. */
export interface FlatImage extends AsyncDisposable {
  path: string;
}

/**
 * Makes one image of another and its changed pages. What is zero stays a hole.
 *
 * @throws FlurryError NO_SPACE, ABORTED. Nothing is left of it then.
 */
export async function flatImage(
  host: Host,
  basePath: string,
  delta: Delta,
  signal?: AbortSignal,
): Promise<FlatImage> {
  await using base = await open(basePath, "r");
  const { size } = await base.stat();
  const path = makeRamFile(host, size / 1024 / 1024);
  try {
    await using image = await open(path, "r+");
    await copy(base, image, size, signal);
    let at = 0;
    for (const { first, count } of delta.runs) {
      await writeAll(image, delta.data.subarray(at, at + count * PAGE_BYTES), first * PAGE_BYTES);
      at += count * PAGE_BYTES;
    }
  } catch (cause) {
    await rm(path, { force: true });
    if (codeOf(cause) !== "ENOSPC") throw cause;
    throw new FlurryError("NO_SPACE", `Cannot hold the memory of a fork in "${host.owner.shm}"`, { cause });
  }
  if (host.qemu.readOnlyRam) chmodSync(path, 0o400);
  return { path, [Symbol.asyncDispose]: () => rm(path, { force: true }) };
}

type File = Awaited<ReturnType<typeof open>>;

async function copy(from: File, to: File, size: number, signal: AbortSignal | undefined): Promise<void> {
  const chunk = Buffer.allocUnsafe(CHUNK_BYTES);
  for (let at = 0; at < size; ) {
    throwIfAborted(signal);
    const { bytesRead } = await from.read(chunk, 0, Math.min(CHUNK_BYTES, size - at), at);
    if (bytesRead === 0)
      throw new FlurryError("IMAGE_CORRUPT", `A memory image ends at byte ${at} of ${size}`);
    const bytes = chunk.subarray(0, bytesRead);
    if (!bytes.equals(ZEROS.subarray(0, bytesRead))) await writeAll(to, bytes, at);
    at += bytesRead;
  }
}

async function writeAll(file: File, bytes: Uint8Array, position: number): Promise<void> {
  for (let done = 0; done < bytes.length; ) {
    const { bytesWritten } = await file.write(bytes, done, bytes.length - done, position + done);
    done += bytesWritten;
  }
}
