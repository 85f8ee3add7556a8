import { streams } from "../constants.ts";
import { InboundStream, OutboundStream } from "../flow.ts";
import { type BodyPump, pumpBody, type WorkerBody } from "./body-pump.ts";
import type { OutboundHandler, OutboundResponse } from "./client-types.ts";
import { type OutboundCode, type WorkerType, workerLimits } from "./constants.ts";
import { WorkerError } from "./errors.ts";
import type { GuestMessage } from "./guest-messages.ts";
import { headersProblem } from "./headers.ts";

/** What may be said to the guest. After the channel went, it is said to nobody. */
export interface OutboundChannel {
  send(type: WorkerType, id: number, fields?: Record<string, unknown>): void;
  /** Resolves when there is room for more. */
  sendData(id: number, chunk: Uint8Array): Promise<void>;
}

type Start = Extract<GuestMessage, { type: "OUTBOUND" }>;

/**
 * One request that the worker makes: its body from the guest, the answer's to the guest. It is over with the last
 * byte of the answer, with an error, or when the guest cancels it; then its id is free.
 */
export class OutboundExchange {
  readonly #channel: OutboundChannel;
  readonly #start: Start;
  readonly #abort = new AbortController();
  readonly #inbound: InboundStream | undefined;
  readonly #outbound: OutboundStream;
  readonly #onOver: () => void;
  #received = 0;
  #isOver = false;
  #pump: BodyPump | undefined;

  /** @param onOver - called once, when the id is free, unless `stop` was called */
  constructor(channel: OutboundChannel, start: Start, onOver: () => void) {
    const { id } = start;
    this.#channel = channel;
    this.#start = start;
    this.#onOver = onOver;
    this.#outbound = new OutboundStream({
      data: (chunk) => channel.sendData(id, chunk),
      end: () => channel.send("END", id, { s: streams.IN }),
    });
    if (!start.body) return;
    this.#inbound = new InboundStream({
      credit: (bytes) => this.#say("CREDIT", { s: streams.OUT, n: bytes }),
      cancel: () => this.#say("CANCEL", { s: streams.OUT }),
    });
  }

  /** Has the request made, and passes on what comes of it. Called once. */
  run(handler: OutboundHandler): void {
    const { requestId, method, url, headers, redirect } = this.#start;
    const request = { requestId, method, url, headers, redirect, body: this.#inbound?.readable };
    const answered = Promise.resolve().then(() => handler(request, this.#abort.signal));
    answered.then(
      (response) => this.#answer(response),
      (error) => this.#fail(isForbidden(error) ? "FORBIDDEN" : "FAILED", textOf(error)),
    );
  }

  /** @throws AgentError or WorkerError AGENT_PROTOCOL */
  onMessage(message: GuestMessage): void {
    switch (message.type) {
      case "DATA":
        this.#onData(message.stream, message.data);
        break;
      case "END":
        this.#body(message.stream).end();
        break;
      case "CREDIT":
        if (message.stream !== streams.IN) throw broken("credit for a stream of its own");
        this.#outbound.addCredit(message.bytes);
        break;
      case "CANCEL":
        if (message.stream !== streams.IN) throw broken("an end to a stream of its own");
        this.#end(new WorkerError("ABORTED", "The worker wants no answer any more"));
        break;
      default:
        throw broken(`${message.type} for a request of its own`);
    }
  }

  /** Ends it without a word to the guest. */
  stop(reason: Error): void {
    if (this.#isOver) return;
    this.#isOver = true;
    this.#abort.abort(reason);
    this.#inbound?.end(reason);
    this.#outbound.fail(reason);
    this.#pump?.stop(reason);
  }

  #onData(stream: number, data: Uint8Array): void {
    const body = this.#body(stream);
    if (body.ended) return; // nobody reads it any more
    this.#received += data.length;
    body.push(data);
    if (this.#received <= workerLimits.BODY_MAX) return;
    this.#fail("BODY_TOO_LARGE", `the request's body has more than ${workerLimits.BODY_MAX} bytes`);
  }

  #body(stream: number): InboundStream {
    if (stream === streams.OUT && this.#inbound) return this.#inbound;
    throw broken("a body to a request that has none");
  }

  #answer(response: OutboundResponse): void {
    const { status, statusText = "", headers, url, redirected, body } = response;
    if (this.#isOver) {
      if (body) stopReading(body, this.#abort.signal.reason);
      return;
    }
    const problem = headersProblem(headers);
    if (problem || url.length > workerLimits.URL_MAX || status < 200 || status > 599) {
      if (body) stopReading(body, new WorkerError("ABORTED", "The answer cannot be passed on"));
      this.#fail("FAILED", `the answer has ${problem ?? `the status ${status}, or a URL that is too long`}`);
      return;
    }
    const head = { status, statusText: reasonPhrase(statusText), headers, url, redirected };
    this.#say("ANSWER", body === undefined ? head : { ...head, body: true });
    if (body === undefined) this.#end(new WorkerError("ABORTED", "The request is over"));
    else this.#send(body);
  }

  #send(body: WorkerBody): void {
    let sent = 0;
    const write = async (chunk: Uint8Array) => {
      sent += chunk.length;
      if (sent > workerLimits.BODY_MAX) {
        throw new WorkerError("BODY_TOO_LARGE", `it has more than ${workerLimits.BODY_MAX} bytes`);
      }
      await this.#outbound.write(chunk);
    };
    this.#pump = pumpBody(body, write);
    this.#pump.finished.then(
      () => {
        if (!this.#isOver) this.#outbound.end();
        this.#end(new WorkerError("ABORTED", "The request is over"));
      },
      (error) => {
        this.#say("ABORT", { s: streams.IN, message: textOf(error) });
        this.#end(error instanceof Error ? error : new WorkerError("ABORTED", textOf(error)));
      },
    );
  }

  #fail(code: OutboundCode, message: string): void {
    if (this.#isOver) return;
    refuse(this.#channel, this.#start.id, code, message);
    this.#end(new WorkerError("ABORTED", message));
  }

  #end(reason: Error): void {
    if (this.#isOver) return;
    this.stop(reason);
    this.#onOver();
  }

  #say(type: WorkerType, fields: Record<string, unknown>): void {
    if (!this.#isOver) this.#channel.send(type, this.#start.id, fields);
  }
}

/** Ends a request of the guest by an error. */
export function refuse(channel: OutboundChannel, id: number, code: OutboundCode, message: string): void {
  channel.send("ERROR", id, { code, message: message.slice(0, workerLimits.MESSAGE_MAX) });
}

/** What a Response of the guest takes as such. */
function reasonPhrase(text: string): string {
  return text.replaceAll(/[^\t\x20-\x7e\x80-\xff]/g, "").slice(0, workerLimits.NAME_MAX);
}

function stopReading(body: WorkerBody, reason: unknown): void {
  const pump = pumpBody(body, async () => undefined);
  pump.finished.catch(() => undefined); // whatever it was, nobody wants it
  pump.stop(reason);
}

function isForbidden(error: unknown): boolean {
  return error instanceof Error && "code" in error && error.code === "OUTBOUND_FORBIDDEN";
}

function textOf(error: unknown): string {
  const message = error instanceof Error ? error.message : String(error);
  return (message || "it failed").slice(0, workerLimits.MESSAGE_MAX);
}

function broken(what: string): WorkerError<"AGENT_PROTOCOL"> {
  return new WorkerError("AGENT_PROTOCOL", `The guest sent ${what}`);
}
