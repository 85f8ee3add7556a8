import type { Connection, MessageHandler } from "./connection.ts";
import { streams } from "./constants.ts";
import { refusal, type WaitOptions, watchDeadline } from "./deadline.ts";
import { AgentError } from "./errors.ts";
import { InboundStream, OutboundStream } from "./flow.ts";
import { type AgentEntry, type GuestMessage, parseEntries } from "./messages.ts";

export type FileSource = string | Uint8Array | ReadableStream<Uint8Array> | AsyncIterable<Uint8Array>;

export interface PutOptions extends WaitOptions {
  /** Permission bits. @default 0o644 */
  mode?: number | undefined;
}

/** A file of the guest, being read. */
export interface AgentFile {
  /** Bytes, when it was opened; 0 for files that the kernel makes up. */
  size: number;
  mode: number;
  mtimeMs: number;
  body: ReadableStream<Uint8Array>;
}

/** Writes a file; it appears under its name only when it is whole. Missing directories are made. */
export async function putFile(
  connection: Connection,
  path: string,
  source: FileSource,
  options: PutOptions = {},
): Promise<{ size: number }> {
  const done = Promise.withResolvers<{ size: number }>();
  done.promise.catch(() => undefined);
  const output = new OutboundStream({
    data: (chunk) => connection.sendData(id, streams.IN, chunk),
    end: () => connection.send("END", id, { s: streams.IN }),
  });
  const transfer = new Transfer(connection, `Writing "${path}"`, options, {
    onMessage(message) {
      if (message.type === "CREDIT") output.addCredit(message.bytes);
      else if (message.type === "OK") {
        transfer.finish();
        done.resolve({ size: message.size ?? 0 });
      } else throw new AgentError("AGENT_PROTOCOL", `The guest answered PUT with ${message.type}`);
    },
    onClose(error) {
      output.fail(error);
      done.reject(error);
    },
  });
  const id = transfer.start("PUT", { path, mode: options.mode ?? 0o644 });
  const chunks = openSource(source);
  try {
    for (;;) {
      // The guest may refuse while the source is still silent.
      const next = await Promise.race([chunks.next(), done.promise]);
      if ("size" in next)
        throw new AgentError("AGENT_PROTOCOL", "The guest ended a file before its end was sent");
      if (next.done) break;
      await output.write(next.value ?? new Uint8Array(0));
    }
    output.end();
    return await done.promise;
  } catch (error) {
    transfer.abandon(error);
    chunks.stop(error);
    throw error;
  }
}

/** Opens a file for reading. The transfer ends with the body, or when the body is cancelled. */
export async function openFile(
  connection: Connection,
  path: string,
  options: WaitOptions = {},
): Promise<AgentFile> {
  const opened = Promise.withResolvers<AgentFile>();
  const body = new InboundStream({
    credit: (bytes) => connection.send("CREDIT", id, { s: streams.OUT, n: bytes }),
    cancel: () => transfer.abandon(undefined),
  });
  const transfer = new Transfer(connection, `Reading "${path}"`, options, {
    onMessage(message) {
      if (message.type === "FILE") {
        const { size, mode, mtimeMs } = message;
        opened.resolve({ size, mode, mtimeMs, body: body.readable });
      } else if (message.type === "DATA") body.push(message.data);
      else if (message.type === "END") {
        transfer.finish();
        body.end();
      } else throw new AgentError("AGENT_PROTOCOL", `The guest answered GET with ${message.type}`);
    },
    onClose(error) {
      opened.reject(error);
      body.end(error);
    },
  });
  const id = transfer.start("GET", { path });
  return await opened.promise;
}

/** Lists a directory with everything below it, sorted by path. Symbolic links are not followed. */
export async function listFiles(
  connection: Connection,
  path: string,
  options: WaitOptions & { maxEntries: number },
): Promise<AgentEntry[]> {
  const entries: AgentEntry[] = [];
  const done = Promise.withResolvers<void>();
  let owed = 0;
  const transfer = new Transfer(connection, `Listing "${path}"`, options, {
    onMessage(message) {
      if (message.type === "DATA") {
        for (const entry of parseEntries(message.data)) entries.push(entry);
        owed += message.data.length;
        if (entries.length > options.maxEntries) {
          const error = new AgentError(
            "AGENT_REFUSED",
            `"${path}" has more than ${options.maxEntries} entries`,
          );
          transfer.abandon(error);
        } else if (owed >= 65536) {
          connection.send("CREDIT", id, { s: streams.OUT, n: owed });
          owed = 0;
        }
      } else if (message.type === "END") {
        transfer.finish();
        done.resolve();
      } else if (message.type !== "OK") {
        throw new AgentError("AGENT_PROTOCOL", `The guest answered LIST with ${message.type}`);
      }
    },
    onClose: (error) => done.reject(error),
  });
  const id = transfer.start("LIST", { path });
  await done.promise;
  return entries.sort((a, b) => (a.path < b.path ? -1 : 1));
}

/** What all transfers share: a deadline, the guest's refusal, and giving up half-way. */
class Transfer implements MessageHandler {
  readonly #connection: Connection;
  readonly #what: string;
  readonly #handler: MessageHandler;
  readonly #deadline: Disposable;
  #id = 0;
  #over = false;

  constructor(connection: Connection, what: string, options: WaitOptions, handler: MessageHandler) {
    this.#connection = connection;
    this.#what = what;
    this.#handler = handler;
    this.#deadline = watchDeadline(what, options, (error) => this.abandon(error));
  }

  start(type: "PUT" | "GET" | "LIST", fields: Record<string, unknown>): number {
    try {
      this.#id = this.#connection.open(this);
      this.#connection.send(type, this.#id, fields);
      return this.#id;
    } catch (error) {
      this.finish();
      throw error;
    }
  }

  onMessage(message: GuestMessage): void {
    if (message.type === "ERROR") {
      const wasOver = this.#over;
      this.finish();
      if (!wasOver) this.#handler.onClose(refusal(this.#what, message));
    } else if (!this.#over) {
      this.#handler.onMessage(message);
    } else if (message.type === "OK" || message.type === "END") {
      this.finish(); // the guest's word that it gave up as well, or had ended just before
    }
  }

  onClose(error: AgentError): void {
    if (this.#over) return;
    this.finish();
    this.#handler.onClose(error);
  }

  /** The guest is through with it. */
  finish(): void {
    this.#over = true;
    this.#deadline[Symbol.dispose]();
    this.#connection.release(this.#id);
  }

  /** We are through with it: tells the guest, whose answer frees the id. */
  abandon(reason: unknown): void {
    if (this.#over) return;
    this.#over = true;
    this.#deadline[Symbol.dispose]();
    this.#connection.send("CANCEL", this.#id, { s: streams.IN });
    if (reason instanceof AgentError) this.#handler.onClose(reason);
  }
}

interface Chunks {
  next(): Promise<{ done: boolean; value?: Uint8Array | undefined }>;
  /** Lets the source go. It is not waited for: it may be silent for ever. */
  stop(reason: unknown): void;
}

async function* once(chunk: Uint8Array): AsyncGenerator<Uint8Array> {
  yield chunk;
}

function openSource(source: FileSource): Chunks {
  const ignored = () => undefined; // the transfer has failed already, with the error that counts
  if (typeof source === "string") return openSource(new TextEncoder().encode(source));
  if (source instanceof Uint8Array) return openSource(once(source));
  if (source instanceof ReadableStream) {
    const reader = source.getReader();
    return { next: () => reader.read(), stop: (reason) => void reader.cancel(reason).catch(ignored) };
  }
  const iterator = source[Symbol.asyncIterator]();
  return {
    next: async () => {
      const { done, value } = await iterator.next();
      return { done: done === true, value };
    },
    stop: () => void iterator.return?.().catch(ignored),
  };
}
