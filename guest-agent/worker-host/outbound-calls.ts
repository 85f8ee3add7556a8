import { AgentError } from "../protocol/errors.ts";
import { OUTBOUND_ID_MIN, type WorkerType, workerLimits } from "../protocol/worker/constants.ts";
import type { OutboundHead } from "../protocol/worker/guest-messages.ts";
import { headersProblem } from "../protocol/worker/headers.ts";
import type { HostMessage } from "../protocol/worker/host-messages.ts";
import { type CallAnswer, fetchError, OutboundCall } from "./outbound-call.ts";

/** The way to one host, by the ids of this side. */
export interface CallsChannel {
  send(type: WorkerType, id: number, fields: Record<string, unknown>): void;
  sendData(id: number, chunk: Uint8Array): Promise<void>;
}

interface Waiting {
  url: string;
  begin(): void;
  fail(reason: unknown): void;
}

const LOST = "it was begun before this VM was forked, or its host has gone";

/**
 * The worker's own requests, which the host makes: a guest has no network device. They belong to one host and
 * end with it, so that a fork waits for nothing that its parent had asked for. Those above the most that may be
 * under way wait for their turn.
 */
export class OutboundCalls {
  #channel: CallsChannel | undefined;
  #isChild = false;
  #isHeld = false;
  #hasLeft = false;
  #nextId = OUTBOUND_ID_MIN;
  readonly #calls = new Map<number, OutboundCall>();
  readonly #waiting = new Set<Waiting>();

  /** Under way, or waiting for their turn. */
  get size(): number {
    return this.#calls.size + this.#waiting.size;
  }

  /** A new host is there. Until it says that this is a fork, there is no network. */
  attach(channel: CallsChannel): void {
    this.#channel = channel;
    this.#isChild = false;
    this.#isHeld = false;
    this.#hasLeft = false;
  }

  /** The host is gone, and with it what it was asked for. */
  detach(): void {
    this.#channel = undefined;
    for (const left of [...this.#waiting, ...this.#calls.values()]) left.fail(fetchError(left.url, LOST));
  }

  /** This is a fork: there is a network, as far as the host has one for it. */
  open(): void {
    this.#isChild = true;
  }

  /** A program in this VM has forked it: the host that makes requests is still its parent's alone. */
  leave(): void {
    this.#hasLeft = true;
    this.detach();
  }

  /** Nothing may be said until `resume`; what is asked meanwhile waits. */
  hold(): void {
    this.#isHeld = true;
  }

  resume(): void {
    this.#isHeld = false;
    this.#advance();
  }

  /**
   * Has the host make a request.
   *
   * @throws TypeError as fetch does; the signal's reason; what reading `body` throws
   */
  async fetch(
    head: OutboundHead,
    body: ReadableStream<unknown> | undefined,
    signal: AbortSignal,
  ): Promise<CallAnswer> {
    const { url } = head;
    signal.throwIfAborted();
    if (this.#hasLeft) throw fetchError(url, "a VM that its own program has forked has no network");
    if (!this.#isChild) throw fetchError(url, "a worker has no network before its fork");
    const problem = headersProblem(head.headers);
    if (problem) throw fetchError(url, `the request has ${problem}`);
    if (url.length > workerLimits.URL_MAX) throw fetchError(url, `its URL has ${url.length} characters`);
    const call = await this.#turn(url, signal, () => this.#begin(head, body, signal));
    return await call.answer;
  }

  onMessage(message: HostMessage): void {
    const call = this.#calls.get(message.id); // what crossed the end of its call has nobody waiting
    try {
      call?.onMessage(message);
    } catch (error) {
      if (!(error instanceof AgentError)) throw error;
      call?.cancel(new TypeError(`The host broke the protocol: ${error.message}`));
    }
  }

  get #isFree(): boolean {
    return this.#channel !== undefined && !this.#isHeld && this.#calls.size < workerLimits.OUTBOUND_MAX;
  }

  /** Calls `begin` as soon as there is room for one more. */
  async #turn(url: string, signal: AbortSignal, begin: () => OutboundCall): Promise<OutboundCall> {
    if (this.#isFree && this.#waiting.size === 0) return begin();
    const { promise, resolve, reject } = Promise.withResolvers<OutboundCall>();
    const onAbort = () => waiting.fail(signal.reason);
    const leave = () => {
      this.#waiting.delete(waiting);
      signal.removeEventListener("abort", onAbort);
    };
    const waiting: Waiting = {
      url,
      begin: () => {
        leave();
        resolve(begin());
      },
      fail: (reason) => {
        leave();
        reject(reason);
      },
    };
    signal.addEventListener("abort", onAbort);
    this.#waiting.add(waiting);
    return await promise;
  }

  #advance(): void {
    for (const waiting of this.#waiting) {
      if (!this.#isFree) return;
      waiting.begin();
    }
  }

  #begin(head: OutboundHead, body: ReadableStream<unknown> | undefined, signal: AbortSignal): OutboundCall {
    const channel = this.#channel!;
    const id = this.#freeId();
    const call = new OutboundCall(
      {
        send: (type, fields) => channel.send(type, id, fields),
        sendData: (chunk) => channel.sendData(id, chunk),
        release: () => {
          this.#calls.delete(id);
          this.#advance();
        },
      },
      head.url,
      signal,
    );
    this.#calls.set(id, call);
    const { requestId, method, url, headers, redirect } = head;
    channel.send("OUTBOUND", id, {
      ...{ method, url, headers, redirect },
      ...(requestId === undefined ? {} : { requestId }),
      ...(body === undefined ? {} : { body: true }),
    });
    if (body) void call.send(body);
    return call;
  }

  #freeId(): number {
    do {
      this.#nextId = this.#nextId === 0xffffffff ? OUTBOUND_ID_MIN : this.#nextId + 1;
    } while (this.#calls.has(this.#nextId));
    return this.#nextId;
  }
}
