import { encodeMessage } from "../protocol/codec.ts";
import { type LogLevel, type LogStream, workerLimits, workerTypes } from "../protocol/worker/constants.ts";
import type { WorkerFault } from "../protocol/worker/guest-messages.ts";

/** Payload bytes that are kept while no host may be spoken to. */
const HELD_MAX = 65_536;

export interface LogEntry {
  stream: LogStream;
  level: LogLevel;
  text: string;
  requestId: string | undefined;
}

/**
 * LOG and FAULT messages on their way to the host. They are bounded by the host's credit while there is
 * a host, and by HELD_MAX while there is none or all is quiet; what is above is dropped, and counted.
 */
export class Records {
  #send: ((frame: Uint8Array) => void) | undefined;
  #credit = 0;
  #held: Uint8Array[] = [];
  #heldBytes = 0;
  #dropped = 0;

  /** A new host is there, with a whole window of credit. */
  attach(send: (frame: Uint8Array) => void): void {
    this.#credit = workerLimits.LOG_WINDOW;
    this.resume(send);
  }

  /** The same host may be spoken to again. */
  resume(send: (frame: Uint8Array) => void): void {
    this.#send = send;
    const held = this.#held;
    this.#held = [];
    this.#heldBytes = 0;
    for (const frame of held) this.#emit(frame, 0);
  }

  /** Nothing may be sent until `attach` or `resume`. */
  detach(): void {
    this.#send = undefined;
  }

  /** @returns false if that is more credit than a window */
  addCredit(bytes: number): boolean {
    this.#credit += bytes;
    if (this.#credit > workerLimits.LOG_WINDOW) return false;
    if (this.#dropped > 0) this.#reportDropped();
    return true;
  }

  log(entry: LogEntry): void {
    const dropped = this.#dropped;
    const text = cut(entry.text, workerLimits.LOG_TEXT_MAX);
    const frame = encodeMessage(workerTypes.LOG, 0, {
      stream: entry.stream,
      level: entry.level,
      text,
      time: Date.now(),
      ...(entry.requestId === undefined ? {} : { requestId: entry.requestId }),
      ...(dropped === 0 ? {} : { dropped }),
    });
    if (this.#emit(frame, workerLimits.FAULT_RESERVE)) this.#dropped -= dropped;
  }

  fault(fault: Omit<WorkerFault, "time">): void {
    const { kind, message, stack, exitCode, requestId } = fault;
    const frame = encodeMessage(workerTypes.FAULT, 0, {
      kind,
      message: cut(message, workerLimits.MESSAGE_MAX),
      time: Date.now(),
      ...(stack === undefined ? {} : { stack: cut(stack, workerLimits.STACK_MAX) }),
      ...(exitCode === undefined ? {} : { exitCode: exitCode & 0xff }),
      ...(requestId === undefined ? {} : { requestId }),
    });
    this.#emit(frame, 0);
  }

  /** @returns whether it was sent or kept */
  #emit(frame: Uint8Array, reserve: number): boolean {
    const cost = frame.length - 4; // the length in front is not counted
    if (this.#send === undefined) {
      if (this.#heldBytes + cost <= HELD_MAX) {
        this.#held.push(frame);
        this.#heldBytes += cost;
        return true;
      }
    } else if (this.#credit - cost >= reserve) {
      this.#credit -= cost;
      this.#send(frame);
      return true;
    }
    this.#dropped++;
    return false;
  }

  #reportDropped(): void {
    const text = `${this.#dropped} log records were dropped: the worker writes faster than they are taken`;
    this.log({ stream: "stderr", level: "warn", text, requestId: undefined });
  }
}

/** At most `max` characters, with a sign that there were more. */
export function cut(text: string, max: number): string {
  return text.length <= max ? text : `${text.slice(0, max - 1)}…`;
}
