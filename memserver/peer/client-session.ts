import type { Duplex } from "node:stream";
import type { FlurryError } from "../../errors/errors.ts";
import { orAborted, throwIfAborted } from "../waiting.ts";
import { type FrameReader, peerFailed } from "./frames.ts";
import { answerReader, encodeHello, encodeRequest, type PeerAnswer, type PeerRequest } from "./messages.ts";

/** How much longer what is not urgent may take, for as long as something comes: a network may be slow. */
const PATIENCE = 6;
/** Requests without an answer yet; the server refuses more than 256. */
const MAX_IN_FLIGHT = 128;

export interface RequestOptions {
  /** Sent before what is not urgent. @default false */
  urgent?: boolean | undefined;
  signal?: AbortSignal | undefined;
}

export interface ClientSessionOptions {
  /** Of the peer, for messages. */
  name: string;
  /**
   * Milliseconds in which an urgent request must be answered in full, and without hearing anything from
   * the peer for any other one; that may take six times as long. @default 5000
   */
  requestMs?: number | undefined;
}

/**
 * Takes an answer to its request, whose views are valid during the call only.
 *
 * @returns what the request comes to, or undefined when there is more to come
 * @throws FlurryError PEER_FAILED when it is no answer to it, which ends the connection
 */
export type TakeAnswer<T> = (answer: PeerAnswer) => { value: T } | undefined;

/** Without an id, which the session gives out. */
export type Question = PeerRequest extends infer One
  ? One extends unknown
    ? Omit<One, "id">
    : never
  : never;

interface Pending {
  request: PeerRequest;
  urgent: boolean;
  /** When it was sent. */
  at: number;
  /** Whether that was the last answer. */
  take(answer: PeerAnswer): boolean;
  fail(error: FlurryError): void;
}

/**
 * The client's end of the page protocol over a connection that is open and trusted: many requests at a
 * time, each with a deadline. A peer that misses one, or breaks the protocol, is given up with all that
 * it was asked.
 */
export class ClientSession implements AsyncDisposable {
  /** Why the connection ended. Never rejects. */
  readonly closed: Promise<FlurryError>;
  readonly #socket: Duplex;
  readonly #name: string;
  readonly #requestMs: number;
  readonly #reader: FrameReader;
  /** By id, in the order in which they were sent. */
  readonly #sent = new Map<number, Pending>();
  readonly #waiting = { urgent: new Set<Pending>(), bulk: new Set<Pending>() };
  readonly #ended = Promise.withResolvers<FlurryError>();
  readonly #greeted = Promise.withResolvers<void>();
  #failure: FlurryError | undefined;
  #late = false;
  #timer: NodeJS.Timeout | undefined;
  #lastId = 0;
  #receivedBytes = 0;
  #receivedAt = 0;

  constructor(socket: Duplex, { name, requestMs = 5000 }: ClientSessionOptions) {
    this.#socket = socket;
    this.#name = name;
    this.#requestMs = requestMs;
    this.closed = this.#ended.promise;
    this.#reader = answerReader(
      (answer) => this.#take(answer),
      () => this.#greeted.resolve(),
    );
    this.#greeted.promise.catch(() => "told by `closed`, too");
    socket.on("data", (chunk: Buffer) => this.#receive(chunk));
    socket.on("error", (error: Error) => this.#fail(peerFailed(this.#says(error.message), error)));
    socket.on("close", () => this.#fail(peerFailed(this.#says("the connection was closed"))));
    socket.on("end", () => this.#fail(peerFailed(this.#says("the peer has closed the connection"))));
    socket.write(encodeHello());
  }

  /** How the connection ended, if it did: by a request without an answer in time, or otherwise. */
  get ended(): "late" | "closed" | undefined {
    if (!this.#failure) return undefined;
    return this.#late ? "late" : "closed";
  }

  /** Bytes that came in, before decompression. */
  get receivedBytes(): number {
    return this.#receivedBytes;
  }

  /** Bytes held of frames that are not complete. */
  get held(): number {
    return this.#reader.held;
  }

  /**
   * Waits for the peer's HELLO.
   *
   * @throws FlurryError PEER_FAILED; ABORTED
   */
  async greeted(signal?: AbortSignal): Promise<void> {
    await orAborted(this.#greeted.promise, signal);
  }

  /**
   * Asks, and puts the answers together. After an abort, the answers are still awaited, but not kept.
   *
   * @throws FlurryError PEER_FAILED; ABORTED
   */
  async request<T>(question: Question, take: TakeAnswer<T>, options: RequestOptions = {}): Promise<T> {
    const { urgent = false, signal } = options;
    throwIfAborted(signal);
    if (this.#failure) throw this.#failure;
    const { promise, resolve, reject } = Promise.withResolvers<T>();
    const pending: Pending = {
      request: { ...question, id: this.#nextId() },
      urgent,
      at: 0,
      take: (answer) => {
        if (answer.kind === "error") {
          reject(peerFailed(this.#says(`${answer.code}: ${answer.message}`)));
          return true;
        }
        const result = take(answer);
        if (result) resolve(result.value);
        return result !== undefined;
      },
      fail: reject,
    };
    const queue = urgent ? this.#waiting.urgent : this.#waiting.bulk;
    queue.add(pending);
    this.#sendWaiting();
    try {
      return await orAborted(promise, signal);
    } finally {
      // If it was not sent, it need not be any more.
      queue.delete(pending);
    }
  }

  /** Sends what has no answer. */
  tell(message: PeerRequest): void {
    if (!this.#failure) this.#socket.write(encodeRequest(message));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#fail(peerFailed(this.#says("the connection was given up")));
    await this.closed;
  }

  #nextId(): number {
    do this.#lastId = (this.#lastId % 0xffff_ffff) + 1;
    while (this.#sent.has(this.#lastId));
    return this.#lastId;
  }

  #sendWaiting(): void {
    for (const queue of [this.#waiting.urgent, this.#waiting.bulk]) {
      for (const pending of queue) {
        if (this.#sent.size >= MAX_IN_FLIGHT) return;
        queue.delete(pending);
        pending.at = performance.now();
        this.#sent.set(pending.request.id, pending);
        this.#socket.write(encodeRequest(pending.request));
        this.#watch();
      }
    }
  }

  /** One timer for all, which is set again when it is over. */
  #watch(): void {
    if (this.#timer || this.#sent.size === 0) return;
    const next = Math.min(...this.#sent.values().map((pending) => this.#deadline(pending)));
    this.#timer = setTimeout(
      () => {
        this.#timer = undefined;
        const now = performance.now();
        const late = this.#sent.values().find((pending) => this.#deadline(pending) <= now);
        if (late) {
          this.#late = true;
          const what = `"${late.request.kind}" in ${Math.round(now - late.at)} ms`;
          this.#fail(peerFailed(this.#says(`it has not answered ${what}`)));
        }
        this.#watch();
      },
      Math.max(next - performance.now(), 0) + 1,
    );
  }

  #deadline({ at, urgent }: Pending): number {
    if (urgent) return at + this.#requestMs;
    return Math.min(Math.max(at, this.#receivedAt) + this.#requestMs, at + PATIENCE * this.#requestMs);
  }

  #receive(chunk: Buffer): void {
    if (this.#failure) return;
    this.#receivedBytes += chunk.length;
    this.#receivedAt = performance.now();
    try {
      this.#reader.push(chunk);
      this.#sendWaiting();
    } catch (error) {
      const reason = error instanceof Error ? error.message : String(error);
      this.#fail(peerFailed(this.#says(reason), error));
    }
  }

  #take(answer: PeerAnswer): void {
    const pending = this.#sent.get(answer.id);
    if (!pending) throw peerFailed(`Answer "${answer.kind}" to no request (${answer.id})`);
    if (pending.take(answer)) this.#sent.delete(answer.id);
  }

  #fail(error: FlurryError): void {
    if (this.#failure) return;
    this.#failure = error;
    clearTimeout(this.#timer);
    this.#socket.destroy();
    const all = [...this.#sent.values(), ...this.#waiting.urgent, ...this.#waiting.bulk];
    this.#sent.clear();
    this.#waiting.urgent.clear();
    this.#waiting.bulk.clear();
    for (const pending of all) pending.fail(error);
    this.#greeted.reject(error);
    this.#ended.resolve(error);
  }

  #says(reason: string): string {
    return `Peer ${this.#name}: ${reason}`;
  }
}
