import type { GuestCall } from "../../../guest-agent/protocol/mod.ts";
import { CallError } from "./call-error.ts";
import type { CallState } from "./snapshot.ts";

/** Longest request line, with its end. */
const LINE_MAX = 4096;

/** One request: its words, and what comes behind its line. */
export interface Request {
  call: GuestCall;
  verb: string;
  args: readonly string[];
  /** Reads the raw bytes behind the line. */
  body(length: number): Promise<Uint8Array>;
}

/** Answers a request with what is sent; undefined when there is nobody to answer to any more. */
export type Answer = (request: Request) => Promise<readonly (string | Uint8Array)[] | undefined>;

/** Requests of one program of the guest, one after the other. */
export class Conversation {
  readonly #call: GuestCall;
  readonly #answer: Answer;
  #state: CallState = "idle";

  constructor(call: GuestCall, answer: Answer) {
    this.#call = call;
    this.#answer = answer;
  }

  /** What a fork of the VM would find of it now. */
  get state(): CallState {
    return this.#state === "idle" && this.#call.unread.length > 0 ? "reading" : this.#state;
  }

  /** Serves until either side ends it. @param first - sent before anything is read */
  async run(first?: string): Promise<void> {
    if (first !== undefined) await this.#call.write(first);
    for (;;) {
      const line = await this.#line();
      if (line === undefined) break;
      this.#state = "pending";
      const [verb = "", ...args] = line.split(" ");
      const answer = await this.#answered({
        call: this.#call,
        verb,
        args,
        body: (length) => this.#body(length),
      });
      if (answer === undefined) return;
      for (const part of answer) await this.#call.write(part);
      this.#state = "idle";
      if (String(answer[0]).startsWith("error BAD_CALL")) break;
    }
    this.#call.end();
  }

  async #answered(request: Request): ReturnType<Answer> {
    try {
      return await this.#answer(request);
    } catch (error) {
      if (error instanceof CallError) return [error.asLine()];
      throw error;
    }
  }

  async #line(): Promise<string | undefined> {
    try {
      return await this.#call.line(LINE_MAX);
    } catch (error) {
      if (!(error instanceof RangeError)) throw error;
      await this.#call.write(new CallError("BAD_CALL", error.message).asLine());
      return undefined;
    }
  }

  async #body(length: number): Promise<Uint8Array> {
    this.#state = "reading";
    const bytes = await this.#call.bytes(length);
    this.#state = "pending";
    if (bytes) return bytes;
    throw new CallError("BAD_CALL", `The request ended before its ${length} bytes had come`);
  }
}
