import { createHash, randomUUID } from "node:crypto";
import { access, type FileHandle, mkdir, open, readdir, rename, rm, rmdir } from "node:fs/promises";
import { dirname, join } from "node:path";
import { codeOf, FlurryError } from "../../errors/errors.ts";
import type { BlobStore } from "../jobs/ports.ts";
import { abortable } from "./abortable.ts";
import { onFiles, syncDirectory } from "./files.ts";

/** Bytes that a read takes from the file at a time, at most. */
const READ_BYTES = 256 * 1024;
/** Where contents are that are not yet complete, or being removed. No key has a `~`. */
const TEMPORARY = "~temporary";
const MAX_KEY_LENGTH = 1024;

/**
 * Blobs as files of their own: the blob `a/b` is the file `a/b`, readable by the user of the gateway
 * alone. Only one process at a time may have a directory open.
 */
export class FileBlobs implements BlobStore {
  readonly #dir: string;
  /** Directories that are being made, and not yet durable. */
  readonly #making = new Map<string, Promise<void>>();

  private constructor(dir: string) {
    this.#dir = dir;
  }

  /**
   * Opens the blobs of a directory, and removes what a process that was killed had not finished.
   *
   * @throws FlurryError NO_SPACE, STORE_FAILED
   */
  static async open(dir: string): Promise<FileBlobs> {
    await onFiles(dir, async () => {
      const temporary = join(dir, TEMPORARY);
      await mkdir(temporary, { recursive: true, mode: 0o700 });
      await syncDirectory(dirname(dir));
      await syncDirectory(dir);
      for (const name of await readdir(temporary)) await rm(join(temporary, name), { recursive: true });
    });
    return new FileBlobs(dir);
  }

  async put(
    key: string,
    source: AsyncIterable<Uint8Array>,
    signal?: AbortSignal,
  ): Promise<{ size: number; sha256: string }> {
    const path = this.#path(key);
    const unfinished = this.#temporary();
    const chunks = abortable(source, `Cannot store blob "${key}"`, signal);
    try {
      const stored = await writeNew(unfinished, chunks);
      await onFiles(path, () => this.#publish(unfinished, path));
      return stored;
    } finally {
      await onFiles(unfinished, () => rm(unfinished, { force: true }));
    }
  }

  async get(
    key: string,
    range: { start: number; end: number } = { start: 0, end: Number.POSITIVE_INFINITY },
  ): Promise<ReadableStream<Uint8Array> | undefined> {
    const path = this.#path(key);
    return await onFiles(path, async () => {
      const handle = await openIfThere(path);
      if (!handle) return undefined;
      try {
        const stat = await handle.stat();
        if (stat.isFile()) return streamOf(handle, range.start, Math.min(range.end, stat.size), path);
        await handle.close();
        return undefined;
      } catch (error) {
        await handle.close();
        throw error;
      }
    });
  }

  async removeAll(prefix: string): Promise<void> {
    const path = this.#path(prefix);
    await onFiles(path, async () => {
      // Away at once: what is put there meanwhile stays, and is in nobody's way.
      const leaving = this.#temporary();
      try {
        await rename(path, leaving);
      } catch (error) {
        if (isMissing(error)) return;
        throw error;
      }
      await syncIfThere(dirname(path));
      await rm(leaving, { recursive: true });
    });
  }

  #temporary(): string {
    return join(this.#dir, TEMPORARY, randomUUID());
  }

  /** Moves a complete file to its place, and returns when it stays there whatever happens. */
  async #publish(from: string, to: string): Promise<void> {
    for (;;) {
      await this.#makeDirectory(dirname(to));
      try {
        await rename(from, to);
        return await syncIfThere(dirname(to));
      } catch (error) {
        // removeAll() took the directory away again, unless it is the file that is gone.
        if (codeOf(error) !== "ENOENT") throw error;
        await access(from);
      }
    }
  }

  /** Makes a directory and those above it; all are durable then, also those that another put is making. */
  #makeDirectory(dir: string): Promise<void> {
    if (dir === this.#dir) return Promise.resolve();
    const making = this.#making.get(dir);
    if (making) return making;
    const made = this.#makeBelow(dir).finally(() => this.#making.delete(dir));
    this.#making.set(dir, made);
    return made;
  }

  async #makeBelow(dir: string): Promise<void> {
    await this.#makeDirectory(dirname(dir));
    try {
      await mkdir(dir, { mode: 0o700 });
    } catch (error) {
      if (codeOf(error) === "EEXIST") return;
      // removeAll() was faster, unless the whole store is gone.
      if (codeOf(error) === "ENOENT" && dirname(dir) !== this.#dir) return await this.#makeBelow(dir);
      throw error;
    }
    try {
      await syncIfThere(dirname(dir));
    } catch (error) {
      // One that is there counts as durable.
      await rmdir(dir);
      throw error;
    }
  }

  /** @throws FlurryError BAD_ARGUMENT */
  #path(key: string): string {
    if (key.length <= MAX_KEY_LENGTH && key.split("/").every(isSegment)) return join(this.#dir, key);
    throw new FlurryError("BAD_ARGUMENT", `Blob key ${JSON.stringify(key)} is not valid`);
  }
}

function isSegment(text: string): boolean {
  return /^[A-Za-z0-9_.-]{1,255}$/.test(text) && text !== "." && text !== "..";
}

/** Writes a new file, down to the disk. */
async function writeNew(
  path: string,
  source: AsyncIterable<Uint8Array>,
): Promise<{ size: number; sha256: string }> {
  await using handle = await onFiles(path, () => open(path, "wx", 0o600));
  const hash = createHash("sha256");
  let size = 0;
  // Failures of the source are not the store's: they go through as they are.
  for await (const chunk of source) {
    await onFiles(path, () => writeAll(handle, chunk));
    hash.update(chunk);
    size += chunk.length;
  }
  await onFiles(path, () => handle.sync());
  return { size, sha256: hash.digest("hex") };
}

async function writeAll(handle: FileHandle, chunk: Uint8Array): Promise<void> {
  for (let done = 0; done < chunk.length; ) {
    const { bytesWritten } = await handle.write(chunk, done, chunk.length - done);
    done += bytesWritten;
  }
}

async function openIfThere(path: string): Promise<FileHandle | undefined> {
  try {
    return await open(path, "r");
  } catch (error) {
    if (isMissing(error)) return undefined;
    throw error;
  }
}

/** A directory that removeAll() has taken away meanwhile has nothing to keep. */
async function syncIfThere(dir: string): Promise<void> {
  try {
    await syncDirectory(dir);
  } catch (error) {
    if (!isMissing(error)) throw error;
  }
}

/** Whether there is no such file; a blob may be where the path needs a directory. */
function isMissing(error: unknown): boolean {
  return codeOf(error) === "ENOENT" || codeOf(error) === "ENOTDIR";
}

/** Reads a part of a file as it is asked for; closes the file at the end, at a failure and at a cancel. */
function streamOf(handle: FileHandle, start: number, end: number, path: string): ReadableStream<Uint8Array> {
  let position = start;
  return new ReadableStream<Uint8Array>(
    {
      async pull(controller) {
        try {
          const chunk = await onFiles(path, () => readNext(handle, position, end));
          position += chunk.length;
          if (chunk.length > 0) return controller.enqueue(chunk);
          if (position < end)
            throw new FlurryError("STORE_FAILED", `Blob file ${path} ends after ${position} of ${end} bytes`);
        } catch (error) {
          await handle.close();
          throw error;
        }
        await handle.close();
        controller.close();
      },
      cancel: () => handle.close(),
    },
    { highWaterMark: 0 },
  );
}

/** The next bytes; none at the end. */
async function readNext(handle: FileHandle, position: number, end: number): Promise<Uint8Array> {
  const chunk = new Uint8Array(Math.max(0, Math.min(READ_BYTES, end - position)));
  if (chunk.length === 0) return chunk;
  const { bytesRead } = await handle.read(chunk, 0, chunk.length, position);
  return chunk.subarray(0, bytesRead);
}
