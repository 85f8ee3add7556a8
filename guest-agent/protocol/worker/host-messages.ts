import { limits } from "../constants.ts";
import { workerLimits, workerTypes } from "./constants.ts";
import { type Fields, fieldReader } from "./fields.ts";
import type { HeaderList } from "./headers.ts";

/** Which VM this is. */
export interface VmInfo {
  id: string;
  /** 0 for a parent, which has no children's number. */
  index: number;
  /** How many forks lie behind it. */
  generation: number;
}

/** What a child learns first. */
export interface ForkInfo {
  vm: VmInfo;
  env: Record<string, string>;
  secrets: Record<string, string>;
}

/** The head of what the worker gets for a request of its own. */
export interface AnswerInfo {
  status: number;
  /** The reason phrase. */
  statusText: string;
  headers: HeaderList;
  /** Where it comes from, after redirects. */
  url: string;
  redirected: boolean;
}

/** Every message that a host may send, checked field by field. */
export type HostMessage = { id: number } & (
  | { type: "HELLO" }
  | { type: "PING" }
  | { type: "QUIESCE" }
  | { type: "SETUP" }
  | { type: "SHUTDOWN"; graceMs: number }
  | { type: "LOAD"; protocol: number; entry: string | undefined; name: string }
  | ({ type: "FORKED"; protocol: number } & ForkInfo)
  | { type: "REQUEST"; requestId: string; method: string; url: string; headers: HeaderList; body: boolean }
  | { type: "TASK"; requestId: string }
  | { type: "SCHEDULED"; requestId: string; cron: string; time: number }
  | ({ type: "ANSWER"; body: boolean } & AnswerInfo)
  | { type: "ABORT"; stream: number; message: string }
  | { type: "ERROR"; code: string; message: string }
  | { type: "DATA"; stream: number; data: Uint8Array }
  | { type: "END"; stream: number }
  | { type: "CANCEL"; stream: number }
  | { type: "CREDIT"; stream: number; bytes: number }
  | { type: "UNKNOWN"; number: string }
);

const read = fieldReader("The host");

/** A message that could be told from noise, but not understood. */
export class BadMessage extends Error {
  /** 0 if that could not be read either. */
  readonly id: number;

  constructor(id: number, cause: unknown) {
    super(cause instanceof Error ? cause.message : String(cause), { cause });
    this.name = "BadMessage";
    this.id = id;
  }
}

/**
 * Decodes one payload. `data` of the result points into `payload`.
 *
 * @throws BadMessage if the payload is not a message of this protocol
 */
export function parseHostMessage(payload: Uint8Array): HostMessage {
  let id = 0;
  try {
    const raw = read.decode(payload);
    id = raw.id;
    return parse(raw.type, id, raw.fields);
  } catch (error) {
    throw new BadMessage(id, error);
  }
}

function parse(type: unknown, id: number, fields: Fields): HostMessage {
  switch (type) {
    case workerTypes.HELLO:
      return { type: "HELLO", id };
    case workerTypes.PING:
      return { type: "PING", id };
    case workerTypes.QUIESCE:
      return { type: "QUIESCE", id };
    case workerTypes.SETUP:
      return { type: "SETUP", id };
    case workerTypes.SHUTDOWN:
      return { type: "SHUTDOWN", id, graceMs: read.integer(fields.graceMs ?? 1000, "graceMs", 60_000) };
    case workerTypes.LOAD:
      return {
        type: "LOAD",
        id,
        protocol: read.integer(fields.protocol, "protocol"),
        entry: read.optional(fields.entry, (value) => read.text(value, "entry", limits.PATH_MAX)),
        name: read.text(fields.name, "name", workerLimits.NAME_MAX),
      };
    case workerTypes.FORKED:
      return {
        type: "FORKED",
        id,
        protocol: read.integer(fields.protocol, "protocol"),
        vm: parseVm(fields.vm),
        env: read.strings(fields.env, "env", workerLimits.VARIABLES_MAX),
        secrets: read.strings(fields.secrets, "secrets", workerLimits.VARIABLES_MAX),
      };
    case workerTypes.REQUEST:
      return {
        type: "REQUEST",
        id,
        requestId: requestId(fields),
        method: read.method(fields.method),
        url: read.text(fields.url, "url", workerLimits.URL_MAX),
        headers: read.headers(fields.headers),
        body: read.flag(fields.body, "body"),
      };
    case workerTypes.TASK:
      return { type: "TASK", id, requestId: requestId(fields) };
    case workerTypes.SCHEDULED:
      return {
        type: "SCHEDULED",
        id,
        requestId: requestId(fields),
        cron: read.text(fields.cron, "cron", workerLimits.NAME_MAX),
        time: read.integer(fields.time, "time"),
      };
    case workerTypes.ANSWER:
      return {
        type: "ANSWER",
        id,
        status: read.status(fields.status),
        statusText: read.text(fields.statusText ?? "", "statusText", workerLimits.NAME_MAX),
        headers: read.headers(fields.headers),
        url: read.text(fields.url, "url", workerLimits.URL_MAX),
        redirected: read.flag(fields.redirected, "redirected"),
        body: read.flag(fields.body, "body"),
      };
    case workerTypes.ABORT:
      return {
        type: "ABORT",
        id,
        stream: read.integer(fields.s, "s", 0),
        message: read.text(fields.message, "message", workerLimits.MESSAGE_MAX),
      };
    case workerTypes.ERROR:
      return {
        type: "ERROR",
        id,
        code: read.text(fields.code, "code", workerLimits.NAME_MAX),
        message: read.text(fields.message, "message", workerLimits.MESSAGE_MAX),
      };
    case workerTypes.DATA:
      return { type: "DATA", id, stream: read.integer(fields.s, "s", 0), data: read.chunk(fields.d) };
    case workerTypes.END:
      return { type: "END", id, stream: read.integer(fields.s, "s", 0) };
    case workerTypes.CANCEL:
      return { type: "CANCEL", id, stream: read.integer(fields.s, "s", 1) };
    case workerTypes.CREDIT:
      return {
        type: "CREDIT",
        id,
        stream: read.integer(fields.s, "s", 2),
        bytes: read.integer(fields.n, "n", limits.WINDOW_TO_HOST),
      };
    default:
      return { type: "UNKNOWN", id, number: String(type).slice(0, 40) };
  }
}

function parseVm(value: unknown): VmInfo {
  const fields = read.record(value);
  return {
    id: read.text(fields.id, "vm", workerLimits.NAME_MAX),
    index: read.integer(fields.index, "vm", 0xffffffff),
    generation: read.integer(fields.generation, "vm", 0xffffffff),
  };
}

function requestId(fields: Fields): string {
  return read.text(fields.requestId, "requestId", workerLimits.NAME_MAX);
}
