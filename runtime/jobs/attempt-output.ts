import type { LogStore, NewLogChunk } from "./ports.ts";
import type { After } from "./timer.ts";

/** Most bytes of an attempt that the logs keep. */
const MAX_LOG_BYTES = 8 * 1024 * 1024;
/** What is written to the store at once, and how long less than that waits. */
const BATCH_BYTES = 64 * 1024;
const BATCH_MS = 100;
/** Bytes of stdout that the result shows. */
const RESULT_BYTES = 64 * 1024;

/** Takes what an attempt prints to the logs, in batches, and keeps the beginning of stdout for its result. */
export class AttemptOutput implements Disposable {
  readonly #logs: LogStore;
  readonly #job: string;
  readonly #from: { task: number; attempt: number };
  readonly #after: After;
  readonly #decoders = {
    stdout: new TextDecoder("utf-8", { ignoreBOM: true }),
    stderr: new TextDecoder("utf-8", { ignoreBOM: true }),
  };
  readonly #stdout: Uint8Array[] = [];
  #stdoutBytes = 0;
  #stdoutTruncated = false;
  #logBytes = 0;
  #batch: NewLogChunk[] = [];
  #batchBytes = 0;
  #timer: Disposable | undefined;
  #flushing: Promise<void> | undefined;

  constructor(options: { logs: LogStore; job: string; task: number; attempt: number; after: After }) {
    this.#logs = options.logs;
    this.#job = options.job;
    this.#from = { task: options.task, attempt: options.attempt };
    this.#after = options.after;
  }

  /** Takes a chunk. Fulfilled when there is room for more. @throws whatever the store throws */
  async write(stream: "stdout" | "stderr", chunk: Uint8Array): Promise<void> {
    if (stream === "stdout") this.#keep(chunk);
    for (let at = 0; at < chunk.length && this.#logBytes < MAX_LOG_BYTES; ) {
      const part = chunk.subarray(at, at + Math.min(BATCH_BYTES, MAX_LOG_BYTES - this.#logBytes));
      at += part.length;
      this.#logBytes += part.length;
      this.#add(stream, this.#decoders[stream].decode(part, { stream: true }), part.length);
      if (this.#logBytes === MAX_LOG_BYTES) this.#add("system", "The rest of the output was left out", 0);
      if (this.#batchBytes >= BATCH_BYTES) await this.flush();
    }
    this.#timer ??= this.#after(BATCH_MS, () => {
      // Nobody waits for this one: whoever writes next or ends meets the error again.
      this.flush().catch(() => undefined);
    });
  }

  /** Takes no more: what is left can be flushed. Returns what the result shows. */
  end(): { stdout: string; stdoutTruncated: boolean } {
    if (this.#logBytes < MAX_LOG_BYTES) {
      for (const stream of ["stdout", "stderr"] as const)
        this.#add(stream, this.#decoders[stream].decode(), 0);
    }
    // A character that the limit cuts in two is left out.
    const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    const stdout = decoder.decode(Buffer.concat(this.#stdout), { stream: this.#stdoutTruncated });
    return { stdout, stdoutTruncated: this.#stdoutTruncated };
  }

  /** Writes what has been taken; what the store did not take stays for the next time. @throws whatever it throws */
  flush(): Promise<void> {
    this.#timer?.[Symbol.dispose]();
    this.#timer = undefined;
    this.#flushing ??= this.#write().finally(() => {
      this.#flushing = undefined;
    });
    return this.#flushing;
  }

  [Symbol.dispose](): void {
    this.#timer?.[Symbol.dispose]();
  }

  #keep(chunk: Uint8Array): void {
    const room = RESULT_BYTES - this.#stdoutBytes;
    if (chunk.length > room) this.#stdoutTruncated = true;
    const part = chunk.slice(0, room);
    if (part.length > 0) this.#stdout.push(part);
    this.#stdoutBytes += part.length;
  }

  #add(stream: NewLogChunk["stream"], text: string, bytes: number): void {
    if (text === "") return;
    this.#batchBytes += bytes;
    const last = this.#batch.at(-1);
    if (last?.stream === stream) last.text += text;
    else this.#batch.push({ ...this.#from, stream, text });
  }

  async #write(): Promise<void> {
    while (this.#batch.length > 0) {
      const batch = this.#batch;
      const bytes = this.#batchBytes;
      this.#batch = [];
      this.#batchBytes = 0;
      try {
        await this.#logs.append(this.#job, batch);
      } catch (error) {
        this.#batch = [...batch, ...this.#batch];
        this.#batchBytes += bytes;
        throw error;
      }
    }
  }
}
