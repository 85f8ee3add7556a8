import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { type FileHandle, link, lstat, mkdir, open, rm } from "node:fs/promises";
import { join, resolve } from "node:path";
import { codeOf, FlurryError } from "../../errors/errors.ts";
import type { Artifact, FlurryClient } from "../client/mod.ts";
import { reapLeftoverFiles, temporaryPrefix } from "../vm/owner.ts";

/** Files that are fetched at the same time. */
const AT_ONCE = 4;
/** Connections in a row that may be lost without a single byte. */
const MAX_LOST = 3;

export interface DownloadOptions {
  client: FlurryClient;
  job: string;
  /** Only of this task. */
  task?: number | undefined;
  /** Made when missing. */
  dir: string;
  onFile: (file: { artifact: Artifact; path: string; existed: boolean }) => void;
  signal: AbortSignal;
}

/**
 * Fetches a job's artifacts to DIR/TASK/PATH. What the gateway names stays below DIR, whatever it names and
 * whatever symbolic links are there; no file is overwritten, and none is there in part.
 *
 * @throws FlurryError BAD_ARGUMENT when a file is there with another content, NO_SPACE, GATEWAY_FAILED …
 */
export async function downloadArtifacts(options: DownloadOptions): Promise<void> {
  const root = resolve(options.dir);
  await refined(mkdir(root, { recursive: true }), options.dir);
  reapLeftoverFiles(root);
  const stop = new AbortController();
  const signal = AbortSignal.any([options.signal, stop.signal]);
  const { client, job, task } = options;
  const artifacts = client.jobs.artifacts(job, { task, signal });
  const work = async () => {
    try {
      // A generator answers those who ask at the same time one after the other.
      for (let next = await artifacts.next(); !next.done; next = await artifacts.next()) {
        options.onFile({ artifact: next.value, ...(await fetchFile(options, root, next.value, signal)) });
      }
    } catch (error) {
      stop.abort(error);
      throw error;
    }
  };
  const results = await Promise.allSettled(Array.from({ length: AT_ONCE }, work));
  if (options.signal.aborted) throw options.signal.reason;
  if (stop.signal.aborted) throw stop.signal.reason;
  for (const result of results) if (result.status === "rejected") throw result.reason;
}

async function fetchFile(options: DownloadOptions, root: string, artifact: Artifact, signal: AbortSignal) {
  const names = [String(artifact.task), ...artifact.path.split("/")];
  if (names.some((name) => name === "" || name === "." || name === ".." || name.includes("\0"))) {
    throw new FlurryError("GATEWAY_FAILED", `The gateway names an artifact ${JSON.stringify(artifact.path)}`);
  }
  const path = join(root, ...names);
  await makeDirectories(root, names.slice(0, -1));
  if (await isThere(path, artifact)) return { path, existed: true };
  const temporary = join(root, `${temporaryPrefix()}${crypto.randomUUID()}`);
  try {
    await using file = await refined(open(temporary, "wx", 0o600), temporary);
    await fetchContent(options, artifact, file, signal);
    await refined(file.chmod(artifact.mode & 0o777), temporary);
    await refined(file.sync(), temporary);
    // Unlike a rename it fails when there is a file by now.
    await refined(link(temporary, path), path);
  } finally {
    await rm(temporary, { force: true });
  }
  return { path, existed: false };
}

/** Writes the content, over several connections if one is lost, and proves it by its hash. */
async function fetchContent(
  { client, job }: DownloadOptions,
  { task, path, size, sha256 }: Artifact,
  file: FileHandle,
  signal: AbortSignal,
): Promise<void> {
  const hash = createHash("sha256");
  let written = 0;
  let lost = 0;
  for (;;) {
    const start = written;
    try {
      const range = start === 0 ? undefined : { start };
      const { stream } = await client.jobs.artifact(job, task, path, { ...(range && { range }), signal });
      for await (const chunk of stream) {
        hash.update(chunk);
        await refined(file.write(chunk, 0, chunk.byteLength, written), path);
        written += chunk.byteLength;
        if (written > size) break;
      }
      break;
    } catch (error) {
      lost = written > start ? 0 : lost + 1;
      if (codeOf(error) !== "GATEWAY_UNREACHABLE" || lost >= MAX_LOST) throw error;
    }
  }
  if (written !== size || hash.digest("hex") !== sha256) {
    throw new FlurryError(
      "GATEWAY_FAILED",
      `The content of "${path}" of task ${task} is not what it should be`,
    );
  }
}

/** Whether the file is there with this content. @throws FlurryError BAD_ARGUMENT when with another one */
async function isThere(path: string, { size, sha256 }: Artifact): Promise<boolean> {
  const entry = await lstat(path).catch((error: unknown) => {
    if (codeOf(error) === "ENOENT") return undefined;
    throw error;
  });
  if (!entry) return false;
  if (entry.isFile() && entry.size === size) {
    const hash = createHash("sha256");
    for await (const chunk of createReadStream(path)) hash.update(chunk);
    if (hash.digest("hex") === sha256) return true;
  }
  throw new FlurryError("BAD_ARGUMENT", `"${path}" is there already, with another content`, {
    hint: "remove it, or name another directory with --out",
  });
}

/** Makes directories one by one, and follows no link on the way. */
async function makeDirectories(root: string, names: readonly string[]): Promise<void> {
  let path = root;
  for (const name of names) {
    path = join(path, name);
    try {
      await mkdir(path);
    } catch (error) {
      if (codeOf(error) !== "EEXIST") throw fileError(error, path);
      if ((await lstat(path)).isDirectory()) continue;
      throw new FlurryError("BAD_ARGUMENT", `"${path}" is there already, and is no directory`);
    }
  }
}

function refined<T>(work: Promise<T>, path: string): Promise<T> {
  return work.catch((error: unknown) => {
    throw fileError(error, path);
  });
}

function fileError(cause: unknown, path: string): FlurryError {
  const reason = cause instanceof Error ? cause.message : String(cause);
  const full = codeOf(cause) === "ENOSPC" || codeOf(cause) === "EDQUOT";
  return new FlurryError(full ? "NO_SPACE" : "BAD_ARGUMENT", `Cannot write "${path}": ${reason}`, { cause });
}
