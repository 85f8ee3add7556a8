import { FlurryError } from "../../errors/errors.ts";
import { throwIfAborted } from "../vm/qemu-process.ts";
import type { AttemptOutput } from "./attempt-output.ts";
import type { Ending } from "./next-step.ts";
import type { AttemptResult, Claim, Store } from "./ports.ts";
import type { Attempt, AttemptExit, AttemptIo, TaskRuntime } from "./task-runtime.ts";

/** Longest input that is also in the environment, in bytes: the kernel takes 128 KiB for one string. */
const MAX_ENV_INPUT = 32 * 1024;
/** Most files that one attempt may leave. */
const MAX_ARTIFACTS = 10_000;

export interface AttemptOptions {
  claim: Claim;
  store: Store;
  runtime: TaskRuntime;
  output: AttemptOutput;
  signal: AbortSignal;
  /** Makes the family's parent ready and waits for a place to run; both may be so already. */
  ready: () => Promise<void>;
  /** The host has memory for its child. */
  onAdmitted: () => void;
  onStarted: (child: Parameters<AttemptIo["started"]>[0]) => void;
}

export type AttemptOutcome =
  | { exit: AttemptExit; left: Ending["left"] }
  | { error: unknown; stage: "prepare" | "run"; left: Ending["left"] };

/** Where the blobs of an attempt are; none of another one are there. */
export function blobPrefix({ job, index, token }: Pick<Claim, "job" | "index" | "token">): string {
  return `${job}/${Math.floor(index / 1000)}/${index}-${token}`;
}

/** Runs one attempt. What it fails of is in the outcome; nothing is thrown. */
export async function runAttempt(options: AttemptOptions): Promise<AttemptOutcome> {
  const { claim, store, runtime, output, signal, ready, onAdmitted } = options;
  const io = new RunIo(options);
  let stage: "prepare" | "run" = "prepare";
  try {
    const task = await attemptOf(claim, store);
    await ready();
    stage = "run";
    using _place = await runtime.admit(claim.family, signal);
    onAdmitted();
    const exit = await runtime.run(task, io, signal);
    return { exit, left: { ...output.end(), artifacts: await io.end() } };
  } catch (error) {
    return { error, stage, left: { ...output.end(), artifacts: await io.end() } };
  }
}

/** What an attempt leaves, as long as it runs. */
class RunIo implements AttemptIo {
  readonly #options: AttemptOptions;
  readonly #ended = new AbortController();
  readonly #signal: AbortSignal;
  readonly #paths = new Set<string>();
  readonly #storing = new Set<Promise<unknown>>();
  readonly #artifacts: AttemptResult["artifacts"][number][] = [];

  constructor(options: AttemptOptions) {
    this.#options = options;
    this.#signal = AbortSignal.any([options.signal, this.#ended.signal]);
  }

  async started(child: Parameters<AttemptIo["started"]>[0]): Promise<void> {
    throwIfAborted(this.#ended.signal);
    const { claim, store, onStarted } = this.#options;
    onStarted(child);
    await store.queue.started(claim.token, child.vm);
  }

  async output(stream: "stdout" | "stderr", chunk: Uint8Array): Promise<void> {
    throwIfAborted(this.#ended.signal);
    await this.#options.output.write(stream, chunk);
  }

  async artifact(
    { path, mode }: { path: string; mode: number },
    content: AsyncIterable<Uint8Array>,
  ): Promise<void> {
    throwIfAborted(this.#ended.signal);
    const { claim, store } = this.#options;
    if (this.#paths.has(path)) throw new FlurryError("TASK_FAILED", `Output "${path}" is there twice`);
    if (this.#paths.size >= MAX_ARTIFACTS) {
      throw new FlurryError("TASK_FAILED", `Task left more than ${MAX_ARTIFACTS} files`);
    }
    const blob = `${blobPrefix(claim)}/${this.#paths.size}`;
    this.#paths.add(path);
    const storing = store.blobs.put(blob, content, this.#signal);
    this.#storing.add(storing);
    const { size, sha256 } = await storing;
    this.#storing.delete(storing);
    this.#artifacts.push({ path, mode, blob, size, sha256 });
  }

  /** Takes no more, and waits until nothing is being stored: a child may die in the middle of a file. */
  async end(): Promise<AttemptResult["artifacts"]> {
    this.#ended.abort();
    await Promise.allSettled(this.#storing);
    return this.#artifacts;
  }
}

async function attemptOf(claim: Claim, store: Store): Promise<Attempt> {
  const { family, spec, job, index, count, attempt, timeoutMs = spec.timeoutMs } = claim;
  const text = inputOf(claim.input);
  const env: Record<string, string> = { ...spec.env, ...claim.env };
  for (const [variable, name] of Object.entries(spec.secrets)) {
    const value = await store.secrets.value(name, claim.owner);
    if (value === undefined) {
      throw new FlurryError("SECRET_NOT_FOUND", `There is no secret "${name}" for ${variable}`);
    }
    env[variable] = value;
  }
  env.FLURRY_JOB_ID = job;
  env.FLURRY_TASK_INDEX = String(index);
  env.FLURRY_TASK_COUNT = String(count);
  env.FLURRY_ATTEMPT = String(attempt);
  const stdin = text === undefined ? undefined : new TextEncoder().encode(text);
  // A module gets it as it is.
  if (!spec.module && text !== undefined && stdin!.length <= MAX_ENV_INPUT && !text.includes("\0")) {
    env.FLURRY_TASK_INPUT = text;
  }
  const key = claim.owner === "" ? undefined : await store.keys.find(claim.owner);
  return {
    ...{ family, spec, job, index, owner: claim.owner, maxVms: key?.limits.vms },
    ...{ name: `task-${index}`, env, stdin, input: claim.input, timeoutMs },
  };
}

/** A string is given as it is, everything else as JSON. */
function inputOf(json: string | undefined): string | undefined {
  if (json === undefined) return undefined;
  const value: unknown = JSON.parse(json);
  return typeof value === "string" ? value : json;
}
