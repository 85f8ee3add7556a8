import { Unpackr } from "msgpackr";
import { CALL_IDS, limits, messageTypes } from "./constants.ts";
import { AgentError } from "./errors.ts";
import { broken, type Fields, integer, text } from "./fields.ts";
import { type IdentityReceipt, parseReceipt } from "./identity.ts";
import { countValues } from "./messagepack-check.ts";

/** What an agent says about itself and its machine. */
export interface HelloInfo {
  protocol: number;
  /** Version of the agent. */
  agent: string;
  /** Release of the guest's kernel. */
  kernel: string;
  hostname: string;
  /** 1 in a VM. */
  pid: number;
  /** Nanoseconds from the kernel's start until the agent was ready (CLOCK_BOOTTIME). */
  bootNs: number;
  /** The same clock when this answer was written. */
  nowNs: number;
  memBytes: number;
}

/** One entry of a listing. */
export interface AgentEntry {
  /** Relative to the listed directory. */
  path: string;
  type: "file" | "dir" | "symlink" | "other";
  /** Bytes; 0 unless a file. */
  size: number;
  /** Permission bits. */
  mode: number;
  mtimeMs: number;
}

/** Every message that a guest may send, checked field by field. */
export type GuestMessage = { id: number } & (
  | ({ type: "HELLO" } & HelloInfo)
  | { type: "PONG" | "STOPPING" }
  | { type: "QUIESCED"; hooks: number }
  | ({ type: "IDENTIFIED" } & IdentityReceipt)
  | { type: "STARTED"; pid: number }
  | { type: "CALL"; pid: number; uid: number; gid: number }
  | { type: "EXIT"; code: number | undefined; signal: number | undefined }
  | { type: "FILE"; size: number; mode: number; mtimeMs: number }
  | { type: "DATA"; stream: number; data: Uint8Array }
  | { type: "END" | "CANCEL"; stream: number }
  | { type: "CREDIT"; stream: number; bytes: number }
  | { type: "OK"; size: number | undefined }
  | { type: "ERROR"; code: string; errno: string | undefined; message: string }
);

const unpackr = new Unpackr({ useRecords: false, mapsAsObjects: true, int64AsType: "bigint" });

/**
 * Decodes one payload. `data` of the result points into `payload`.
 *
 * @throws AgentError AGENT_PROTOCOL if the payload is not a message of this protocol
 */
export function parseMessage(payload: Uint8Array): GuestMessage {
  if (countValues(payload) !== 1) throw broken("a frame that is no MessagePack value");
  const value = decoded(() => unpackr.unpack(payload));
  if (!Array.isArray(value) || value.length < 2 || value.length > 3)
    throw broken("a frame that is no message");
  const id = integer(value[1], "id", 0xffffffff);
  const fields = value.length === 3 ? record(value[2]) : {};
  switch (value[0]) {
    case messageTypes.HELLO:
      return { type: "HELLO", id, ...parseHello(fields) };
    case messageTypes.PONG:
      return { type: "PONG", id };
    case messageTypes.QUIESCED:
      return { type: "QUIESCED", id, hooks: integer(fields.hooks, "hooks", limits.HOOKS_MAX) };
    case messageTypes.STOPPING:
      return { type: "STOPPING", id };
    case messageTypes.IDENTIFIED:
      return { type: "IDENTIFIED", id, ...parseReceipt(fields) };
    case messageTypes.STARTED:
      return { type: "STARTED", id, pid: integer(fields.pid, "pid", 0x7fffffff) };
    case messageTypes.CALL:
      return {
        type: "CALL",
        id: callId(id),
        pid: integer(fields.pid, "pid", 0x7fffffff),
        uid: integer(fields.uid, "uid", 0xffffffff),
        gid: integer(fields.gid, "gid", 0xffffffff),
      };
    case messageTypes.EXIT:
      return parseExit(id, fields);
    case messageTypes.FILE:
      return {
        type: "FILE",
        id,
        size: integer(fields.size, "size"),
        mode: integer(fields.mode, "mode", 0o7777),
        mtimeMs: integer(fields.mtimeMs, "mtimeMs"),
      };
    case messageTypes.DATA:
      return { type: "DATA", id, stream: stream(fields.s), data: chunk(fields.d) };
    case messageTypes.END:
      return { type: "END", id, stream: stream(fields.s) };
    case messageTypes.CANCEL:
      return { type: "CANCEL", id, stream: stream(fields.s) };
    case messageTypes.CREDIT:
      return {
        type: "CREDIT",
        id,
        stream: stream(fields.s),
        bytes: integer(fields.n, "n", limits.WINDOW_TO_GUEST),
      };
    case messageTypes.OK:
      return { type: "OK", id, size: fields.size === undefined ? undefined : integer(fields.size, "size") };
    case messageTypes.ERROR:
      return {
        type: "ERROR",
        id,
        code: text(fields.code, "code"),
        errno: fields.errno === undefined ? undefined : text(fields.errno, "errno"),
        message: text(fields.message, "message"),
      };
    default:
      throw broken(`a message of the unknown type ${String(value[0]).slice(0, 40)}`);
  }
}

/** Decodes the entries in one data message of a listing. */
export function parseEntries(bytes: Uint8Array): AgentEntry[] {
  if (countValues(bytes, 1) === undefined) throw broken("a listing that is not MessagePack");
  const values = decoded(() => unpackr.unpackMultiple(bytes));
  if (!Array.isArray(values)) throw broken("a listing that is no list");
  return values.map(parseEntry);
}

function parseEntry(value: unknown): AgentEntry {
  if (!Array.isArray(value) || value.length !== 5) throw broken("a directory entry that is none");
  const [path, type, size, mode, mtimeMs] = value;
  if (type !== "file" && type !== "dir" && type !== "symlink" && type !== "other") {
    throw broken("a directory entry of unknown type");
  }
  return {
    path: entryPath(path),
    type,
    size: integer(size, "size"),
    mode: integer(mode, "mode", 0o7777),
    mtimeMs: integer(mtimeMs, "mtimeMs"),
  };
}

/** Callers join these paths to a directory of their own: a guest must not be able to leave it. */
function entryPath(value: unknown): string {
  const path = text(value, "path");
  const parts = path.split("/");
  if (path.includes("\0") || parts.some((part) => part === "" || part === "." || part === "..")) {
    throw broken(`the directory entry ${JSON.stringify(path.slice(0, 200))}`);
  }
  return path;
}

function callId(id: number): number {
  if (id >= CALL_IDS) return id;
  throw broken("a call with an id of the host's");
}

function parseHello(fields: Fields): HelloInfo {
  return {
    protocol: integer(fields.protocol, "protocol"),
    agent: text(fields.agent, "agent"),
    kernel: text(fields.kernel, "kernel"),
    hostname: text(fields.hostname, "hostname"),
    pid: integer(fields.pid, "pid", 0x7fffffff),
    bootNs: integer(fields.bootNs, "bootNs"),
    nowNs: integer(fields.nowNs, "nowNs"),
    memBytes: integer(fields.memBytes, "memBytes"),
  };
}

function parseExit(id: number, fields: Fields): GuestMessage {
  const code = fields.code === undefined ? undefined : integer(fields.code, "code", 255);
  const signal = fields.signal === undefined ? undefined : integer(fields.signal, "signal", 127);
  if ((code === undefined) === (signal === undefined)) throw broken("an exit without one of code and signal");
  return { type: "EXIT", id, code, signal };
}

function decoded(decode: () => unknown): unknown {
  try {
    return decode();
  } catch (error) {
    throw new AgentError("AGENT_PROTOCOL", "The guest sent a frame that cannot be decoded", { cause: error });
  }
}

function record(value: unknown): Fields {
  if (typeof value !== "object" || value === null || Array.isArray(value) || value instanceof Uint8Array) {
    throw broken("fields that are no map");
  }
  return value as Fields;
}

function stream(value: unknown): number {
  return integer(value, "s", 2);
}

function chunk(value: unknown): Uint8Array {
  // An empty chunk would cost no credit: an endless row of them could not be held back.
  if (value instanceof Uint8Array && value.length > 0 && value.length <= limits.CHUNK_MAX) return value;
  throw broken('a bad "d"');
}
