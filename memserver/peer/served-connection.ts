import type { Duplex } from "node:stream";
import { codeOf, FlurryError } from "../../errors/errors.ts";
import { orAborted } from "../waiting.ts";
import { type FrameReader, peerFailed } from "./frames.ts";
import { encodeHello, type PeerAnswer, type PeerRequest, requestReader } from "./messages.ts";
import { type AnswerFrame, type AnswerJob, answerJob, ReadJob, tableJob } from "./page-jobs.ts";
import type { Compression, ImageProvider, ServedImage } from "./served-image.ts";

/** Requests that one connection may have at a time. */
const MAX_REQUESTS = 256;

export interface ServedConnectionOptions {
  provider: ImageProvider;
  /** @default "auto" */
  compression?: Compression | undefined;
  /** Images that it may have open at a time. @default 64 */
  maxImages?: number | undefined;
  /** Bytes that wait to be sent, above which nothing more is read or made. @default 1 MiB */
  sendBytes?: number | undefined;
  /** Milliseconds for the peer's HELLO to come. @default 10_000 */
  helloMs?: number | undefined;
  /** Milliseconds without a request after which it is closed. @default 300_000 */
  idleMs?: number | undefined;
  /** Milliseconds after which it is closed when there is something to be sent, but nothing is taken. @default 30_000 */
  stallMs?: number | undefined;
  /** Told why a connection ended other than by its peer, or a request failed. Must not throw. */
  onTrouble?: ((error: unknown) => void) | undefined;
}

/** Counted over all connections of a server. */
export interface ServedStats {
  requests: number;
  pages: number;
  /** Pages that were sent compressed. */
  compressedPages: number;
  /** Bytes of all answers. */
  sentBytes: number;
}

interface OpenImage {
  image: ServedImage;
  pages: number;
  workingSet: Promise<Uint32Array | undefined> | undefined;
}

/** The server's end of the page protocol, over a connection that is open and trusted. */
export class ServedConnection {
  /** Fulfilled when the connection is closed and all of its images are disposed of. Never rejects. */
  readonly closed: Promise<void>;
  readonly #socket: Duplex;
  readonly #options: ServedConnectionOptions;
  readonly #stats: ServedStats;
  readonly #reader: FrameReader;
  readonly #images = new Map<number, OpenImage>();
  readonly #urgent: AnswerJob[] = [];
  readonly #bulk: AnswerJob[] = [];
  readonly #working = new Set<Promise<void>>();
  readonly #abort = new AbortController();
  readonly #sendBytes: number;
  #greeted = false;
  #opening = 0;
  #lastHandle = 0;
  #active = performance.now();
  #timer: NodeJS.Timeout | undefined;
  #turn: NodeJS.Immediate | undefined;

  constructor(socket: Duplex, options: ServedConnectionOptions, stats: ServedStats) {
    this.#socket = socket;
    this.#options = options;
    this.#stats = stats;
    this.#sendBytes = options.sendBytes ?? 1024 * 1024;
    this.#reader = requestReader(
      (request) => this.#take(request),
      () => {
        this.#greeted = true;
      },
    );
    const { promise, resolve } = Promise.withResolvers<void>();
    this.closed = promise.then(() => this.#release());
    socket.on("data", (chunk: Buffer) => this.#receive(chunk));
    // Also when the peer resets the connection: then "close" follows.
    socket.on("error", (error) => this.end(error));
    socket.on("end", () => this.end());
    socket.on("close", () => resolve());
    this.#send(encodeHello());
    this.#watch();
  }

  /** Closes the connection at once, for this reason. */
  end(reason?: unknown): void {
    if (this.#abort.signal.aborted) return;
    this.#abort.abort(reason);
    clearTimeout(this.#timer);
    clearImmediate(this.#turn);
    if (reason !== undefined) this.#options.onTrouble?.(reason);
    this.#socket.destroy();
  }

  async #release(): Promise<void> {
    this.end();
    await Promise.all(this.#working);
    for (const handle of [...this.#images.keys()]) await this.#close(handle);
  }

  async #close(handle: number): Promise<void> {
    const open = this.#images.get(handle);
    this.#images.delete(handle);
    try {
      await open?.image[Symbol.asyncDispose]();
    } catch (error) {
      this.#options.onTrouble?.(error);
    }
  }

  #receive(chunk: Buffer): void {
    if (this.#abort.signal.aborted) return;
    this.#active = performance.now();
    try {
      this.#reader.push(chunk);
    } catch (error) {
      this.end(error);
    }
  }

  #take(request: PeerRequest): void {
    this.#stats.requests += 1;
    if (this.#urgent.length + this.#bulk.length + this.#working.size >= MAX_REQUESTS) {
      throw peerFailed(`More than ${MAX_REQUESTS} requests at once`);
    }
    const { id } = request;
    switch (request.kind) {
      case "find":
        this.#work(id, this.#find(id, request.key));
        return;
      case "open":
        this.#work(id, this.#open(id, request.hash));
        return;
      case "close":
        this.#work(
          id,
          this.#close(request.image).then(() => undefined),
        );
        return;
      case "working-set":
        this.#work(id, this.#workingSet(request));
        return;
      case "table":
      case "read":
        this.#queue(request);
    }
  }

  #queue(request: PeerRequest & { kind: "table" | "read" }): void {
    const { id, first, count } = request;
    const open = this.#images.get(request.image);
    if (!open || first + count > open.pages) {
      this.#refuse(id, badRange(request, open));
      return;
    }
    if (request.kind === "table") this.#answer(tableJob(id, open.image, first, count), this.#bulk);
    else {
      const queue = request.urgent ? this.#urgent : this.#bulk;
      this.#answer(new ReadJob(id, open.image, first, count), queue);
    }
  }

  /** Puts an answer off to the end of this turn, so that the urgent requests of a chunk are seen first. */
  #answer(job: AnswerJob, queue = this.#urgent): void {
    queue.push(job);
    this.#later();
  }

  /** Answers what takes time; an error is the answer, too. */
  #work(id: number, answering: Promise<PeerAnswer | undefined>): void {
    const work = answering
      .then((answer) => {
        if (answer) this.#answer(answerJob(answer));
      })
      .catch((error: unknown) => this.#refuse(id, error))
      .finally(() => this.#working.delete(work));
    this.#working.add(work);
  }

  async #find(id: number, key: string): Promise<PeerAnswer> {
    const { signal } = this.#abort;
    const hash = await orAborted(this.#options.provider.find(key, signal), signal);
    return hash === undefined ? { kind: "none", id } : { kind: "found", id, hash };
  }

  async #open(id: number, hash: string): Promise<PeerAnswer> {
    const { provider, maxImages = 64 } = this.#options;
    if (this.#images.size + this.#opening >= maxImages) {
      throw new FlurryError("BAD_ARGUMENT", `More than ${maxImages} images at once`);
    }
    this.#opening += 1;
    try {
      const image = await provider.open(hash, this.#abort.signal);
      if (!image) return { kind: "none", id };
      this.#lastHandle += 1;
      const { pages } = image.table;
      // What was opened too late is disposed of with the others, after this.
      this.#images.set(this.#lastHandle, { image, pages, workingSet: undefined });
      return { kind: "opened", id, image: this.#lastHandle, pages, descriptor: image.descriptor };
    } finally {
      this.#opening -= 1;
    }
  }

  async #workingSet(request: PeerRequest & { kind: "working-set" }): Promise<PeerAnswer> {
    const { id, first, count } = request;
    const open = this.#images.get(request.image);
    if (!open) throw badRange(request, open);
    // Kept, so that all parts are of the same one.
    open.workingSet ??= open.image.workingSet();
    const pages = await orAborted(open.workingSet, this.#abort.signal);
    if (!pages) return { kind: "none", id };
    return { kind: "working-set", id, first, pages: [...pages.subarray(first, first + count)] };
  }

  /** Makes answers, urgent ones first, for as long as they are taken. */
  #pump(): void {
    while (!this.#abort.signal.aborted) {
      const queue = this.#urgent.length > 0 ? this.#urgent : this.#bulk;
      const [job] = queue;
      if (!job || this.#full) return;
      let last = true;
      try {
        const made = job.next(this.#compressing());
        last = made.last;
        this.#count(made);
        this.#send(made.frame);
      } catch (error) {
        this.#refuse(job.id, error);
      }
      if (last) queue.shift();
      if (queue === this.#bulk) {
        // The turn of other connections, and of urgent requests that have come meanwhile.
        this.#later();
        return;
      }
    }
  }

  #later(): void {
    if (this.#turn || this.#abort.signal.aborted) return;
    this.#turn = setImmediate(() => {
      this.#turn = undefined;
      this.#pump();
    });
  }

  #compressing(): boolean {
    const { compression = "auto" } = this.#options;
    return compression === "auto" ? this.#socket.writableNeedDrain : compression === "always";
  }

  get #full(): boolean {
    return this.#socket.writableLength >= this.#sendBytes;
  }

  #count({ frame, pages = 0, compressed = false }: AnswerFrame): void {
    this.#stats.sentBytes += frame.length;
    this.#stats.pages += pages;
    if (compressed) this.#stats.compressedPages += pages;
  }

  #send(frame: Buffer): void {
    if (this.#abort.signal.aborted) return;
    this.#socket.write(frame, (error) => {
      if (error || this.#abort.signal.aborted) return;
      this.#active = performance.now();
      if (this.#full) return;
      this.#socket.resume();
      this.#pump();
    });
    // Whoever takes no answers asks no more questions.
    if (this.#full) this.#socket.pause();
  }

  #refuse(id: number, error: unknown): void {
    if (this.#abort.signal.aborted) return;
    this.#options.onTrouble?.(error);
    const message = error instanceof FlurryError ? error.message : "Cannot serve the request";
    const code = codeOf(error) ?? "INTERNAL";
    if (id !== 0) this.#answer(answerJob({ kind: "error", id, code, message }));
  }

  #watch(): void {
    const { helloMs = 10_000, idleMs = 300_000, stallMs = 30_000 } = this.#options;
    const stalled = this.#socket.writableLength > 0;
    const idle = this.#greeted ? idleMs : helloMs;
    const left = this.#active + (stalled ? stallMs : idle) - performance.now();
    if (left <= 0) {
      const reason = stalled ? `has taken nothing for ${stallMs} ms` : `has said no HELLO in ${helloMs} ms`;
      this.end(stalled || !this.#greeted ? peerFailed(`The peer ${reason}`) : undefined);
      return;
    }
    // Looks again soon enough to notice what begins only now.
    this.#timer = setTimeout(() => this.#watch(), Math.min(left, helloMs, idleMs, stallMs));
  }
}

function badRange(request: PeerRequest & { image: number }, open: OpenImage | undefined): FlurryError {
  if (!open) return new FlurryError("BAD_ARGUMENT", `No open image ${request.image}`);
  return new FlurryError("BAD_ARGUMENT", `Pages outside of an image of ${open.pages} pages`);
}
