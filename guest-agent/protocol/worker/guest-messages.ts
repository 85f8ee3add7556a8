import { limits } from "../constants.ts";
import {
  type FaultKind,
  faultKinds,
  type LogLevel,
  type LogStream,
  logLevels,
  logStreams,
  OUTBOUND_ID_MIN,
  type RedirectMode,
  redirectModes,
  workerLimits,
  workerTypes,
} from "./constants.ts";
import { type Fields, fieldReader } from "./fields.ts";
import type { HeaderList } from "./headers.ts";

/** Handlers that a worker may have. */
export const handlerNames = ["setup", "fetch", "task", "scheduled", "onFork"] as const;
export type HandlerName = (typeof handlerNames)[number];

/** How a worker offers its handlers. */
export const workerShapes = ["object", "function", "bun-serve", "deno-serve"] as const;
export type WorkerShape = (typeof workerShapes)[number];

/** What a worker host says about itself. */
export interface WorkerHostInfo {
  protocol: number;
  /** Version of Bun. */
  runtime: string;
  pid: number;
  /** Whether a worker is loaded. */
  loaded: boolean;
}

/** What was loaded. */
export interface LoadedInfo {
  shape: WorkerShape;
  handlers: HandlerName[];
  /** Milliseconds that the module took to load and run. */
  ms: number;
}

/** What came of `waitUntil` promises, in pieces. */
export interface DoneInfo {
  waited: number;
  /** Of these, the ones that were rejected; their errors are in the log. */
  failed: number;
  /** Of these, the ones that had not settled when the time for them was over. */
  unsettled: number;
}

/** One line, or several, that the worker wrote. */
export interface WorkerLog {
  stream: LogStream;
  level: LogLevel;
  text: string;
  /** Milliseconds since 1970 by the guest's clock. */
  time: number;
  /** The request or task that it belongs to, if that is known. */
  requestId: string | undefined;
  /** Records before this one that were dropped because there were too many. */
  dropped: number;
}

/** What a worker did outside of any handler. */
export interface WorkerFault {
  kind: FaultKind;
  message: string;
  stack: string | undefined;
  /** For `exit`. */
  exitCode: number | undefined;
  requestId: string | undefined;
  time: number;
}

/** What a worker asks of others, less its body. */
export interface OutboundHead {
  /** Of the request or task that it is made in, if that is known. */
  requestId: string | undefined;
  method: string;
  url: string;
  headers: HeaderList;
  redirect: RedirectMode;
}

/** Every message that a guest may send, checked field by field. */
export type GuestMessage = { id: number } & (
  | ({ type: "HELLO" } & WorkerHostInfo)
  | { type: "PONG" }
  | { type: "QUIESCED" }
  | { type: "STOPPING" }
  | ({ type: "LOADED" } & LoadedInfo)
  | { type: "SET_UP"; ms: number }
  | { type: "READY"; ms: number }
  | { type: "RESPONSE"; status: number; headers: HeaderList; body: boolean }
  | ({ type: "DONE" } & DoneInfo)
  | { type: "DATA"; stream: number; data: Uint8Array }
  | { type: "END"; stream: number }
  | { type: "CANCEL"; stream: number }
  | { type: "ABORT"; stream: number; message: string }
  | { type: "CREDIT"; stream: number; bytes: number }
  | { type: "ERROR"; code: string; message: string; stack: string | undefined }
  | ({ type: "OUTBOUND"; body: boolean } & OutboundHead)
  | ({ type: "LOG"; cost: number } & WorkerLog)
  | ({ type: "FAULT"; cost: number } & WorkerFault)
);

const read = fieldReader("The guest");

/**
 * Decodes one payload. `data` of the result points into `payload`.
 *
 * @throws AgentError AGENT_PROTOCOL if the payload is not a message of this protocol
 */
export function parseGuestMessage(payload: Uint8Array): GuestMessage {
  const { type, id, fields } = read.decode(payload);
  switch (type) {
    case workerTypes.HELLO:
      return {
        type: "HELLO",
        id,
        protocol: read.integer(fields.protocol, "protocol"),
        runtime: read.text(fields.runtime, "runtime", workerLimits.NAME_MAX),
        pid: read.integer(fields.pid, "pid", 0x7fffffff),
        loaded: read.flag(fields.loaded, "loaded"),
      };
    case workerTypes.PONG:
      return { type: "PONG", id };
    case workerTypes.QUIESCED:
      return { type: "QUIESCED", id };
    case workerTypes.STOPPING:
      return { type: "STOPPING", id };
    case workerTypes.LOADED:
      return { type: "LOADED", id, ...parseLoaded(fields) };
    case workerTypes.SET_UP:
      return { type: "SET_UP", id, ms: read.integer(fields.ms, "ms") };
    case workerTypes.READY:
      return { type: "READY", id, ms: read.integer(fields.ms, "ms") };
    case workerTypes.RESPONSE:
      return {
        type: "RESPONSE",
        id,
        status: read.status(fields.status),
        headers: read.headers(fields.headers),
        body: read.flag(fields.body, "body"),
      };
    case workerTypes.DONE:
      return {
        type: "DONE",
        id,
        waited: read.integer(fields.waited ?? 0, "waited"),
        failed: read.integer(fields.failed ?? 0, "failed"),
        unsettled: read.integer(fields.unsettled ?? 0, "unsettled"),
      };
    case workerTypes.DATA:
      return { type: "DATA", id, stream: read.integer(fields.s, "s", 1), data: read.chunk(fields.d) };
    case workerTypes.END:
      return { type: "END", id, stream: read.integer(fields.s, "s", 1) };
    case workerTypes.CANCEL:
      return { type: "CANCEL", id, stream: read.integer(fields.s, "s", 1) };
    case workerTypes.ABORT:
      return { type: "ABORT", id, stream: read.integer(fields.s, "s", 1), message: message(fields) };
    case workerTypes.CREDIT:
      return {
        type: "CREDIT",
        id,
        stream: read.integer(fields.s, "s", 1),
        bytes: read.integer(fields.n, "n", limits.WINDOW_TO_GUEST),
      };
    case workerTypes.ERROR:
      return {
        type: "ERROR",
        id,
        code: read.text(fields.code, "code", workerLimits.NAME_MAX),
        message: message(fields),
        stack: stack(fields),
      };
    case workerTypes.OUTBOUND:
      // A host's id would be one of two exchanges.
      if (id < OUTBOUND_ID_MIN) throw read.broken('a bad "id"');
      return {
        type: "OUTBOUND",
        id,
        requestId: requestId(fields),
        method: read.method(fields.method),
        url: read.text(fields.url, "url", workerLimits.URL_MAX),
        headers: read.headers(fields.headers),
        redirect: read.oneOf(fields.redirect, "redirect", redirectModes),
        body: read.flag(fields.body, "body"),
      };
    case workerTypes.LOG:
      return { type: "LOG", id, cost: payload.length, ...parseLog(fields) };
    case workerTypes.FAULT:
      return { type: "FAULT", id, cost: payload.length, ...parseFault(fields) };
    default:
      throw read.broken(`a message of the unknown type ${String(type).slice(0, 40)}`);
  }
}

function parseLoaded(fields: Fields): LoadedInfo {
  const { handlers } = fields;
  if (!Array.isArray(handlers) || handlers.length > handlerNames.length)
    throw read.broken('a bad "handlers"');
  return {
    shape: read.oneOf(fields.shape, "shape", workerShapes),
    handlers: handlers.map((name) => read.oneOf(name, "handlers", handlerNames)),
    ms: read.integer(fields.ms, "ms"),
  };
}

function parseLog(fields: Fields): WorkerLog {
  return {
    stream: read.oneOf(fields.stream, "stream", logStreams),
    level: read.oneOf(fields.level, "level", logLevels),
    text: read.text(fields.text, "text", workerLimits.LOG_TEXT_MAX),
    time: read.integer(fields.time, "time"),
    requestId: requestId(fields),
    dropped: read.integer(fields.dropped ?? 0, "dropped"),
  };
}

function parseFault(fields: Fields): WorkerFault {
  return {
    kind: read.oneOf(fields.kind, "kind", faultKinds),
    message: message(fields),
    stack: stack(fields),
    exitCode: read.optional(fields.exitCode, (value) => read.integer(value, "exitCode", 255)),
    requestId: requestId(fields),
    time: read.integer(fields.time, "time"),
  };
}

function message(fields: Fields): string {
  return read.text(fields.message, "message", workerLimits.MESSAGE_MAX);
}

function stack(fields: Fields): string | undefined {
  return read.optional(fields.stack, (value) => read.text(value, "stack", workerLimits.STACK_MAX));
}

function requestId(fields: Fields): string | undefined {
  return read.optional(fields.requestId, (value) => read.text(value, "requestId", workerLimits.NAME_MAX));
}
