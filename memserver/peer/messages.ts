import { MAX_DESCRIPTOR_BYTES } from "../descriptor.ts";
import { ENTRY_BYTES } from "../image/page-table.ts";
import { PAGE_BYTES } from "../stream/format.ts";
import { FrameReader, frame, HEAD_BYTES, type PayloadBounds, peerFailed, writeHead } from "./frames.ts";

const MAGIC = 0x464c5250;
export const PROTOCOL_VERSION = 1;
/** Pages of one READ. */
export const MAX_READ_PAGES = 256;
/** Entries of one TABLE, and page numbers of one WORKING_SET. */
export const MAX_ENTRIES = 16_384;
/** Of an image: 1 TiB. */
export const MAX_PAGES = 2 ** 28;
const MAX_MESSAGE_BYTES = 1024;

const request = { hello: 1, find: 2, open: 3, table: 4, read: 5, workingSet: 6, close: 7 } as const;
const answer = {
  hello: 1,
  found: 0x82,
  none: 0x83,
  opened: 0x84,
  table: 0x85,
  pages: 0x86,
  missing: 0x87,
  error: 0x88,
  workingSet: 0x89,
} as const;

const HASH_BYTES = 32;
const PAGES_FIELDS = 7;
/** What a PAGES frame has before its bytes. */
export const PAGES_HEAD_BYTES = HEAD_BYTES + PAGES_FIELDS;

const requestBounds: PayloadBounds = {
  [request.hello]: [6, 6],
  [request.find]: [HASH_BYTES, HASH_BYTES],
  [request.open]: [HASH_BYTES, HASH_BYTES],
  [request.table]: [12, 12],
  [request.read]: [11, 11],
  [request.workingSet]: [12, 12],
  [request.close]: [4, 4],
};
const answerBounds: PayloadBounds = {
  [answer.hello]: [6, 6],
  [answer.found]: [HASH_BYTES, HASH_BYTES],
  [answer.none]: [0, 0],
  [answer.opened]: [9, 8 + MAX_DESCRIPTOR_BYTES],
  [answer.table]: [4 + ENTRY_BYTES, 4 + MAX_ENTRIES * ENTRY_BYTES],
  [answer.pages]: [PAGES_FIELDS, PAGES_FIELDS + MAX_READ_PAGES * PAGE_BYTES],
  [answer.missing]: [0, 0],
  [answer.error]: [2, MAX_MESSAGE_BYTES],
  [answer.workingSet]: [4, 4 + MAX_ENTRIES * 4],
};

/** How the bytes of pages are sent: as they are, or as one Zstandard frame (RFC 8878). */
export const encodings = ["raw", "zstd"] as const;
export type Encoding = (typeof encodings)[number];

/** What a client asks. `id` is its own, and stands in the answers; `image` is a handle of OPENED. */
export type PeerRequest = {
  id: number;
} /** The hash of the image that was made for what was asked for under this key; both SHA-256 in hex. */ & (
  | { kind: "find"; key: string }
  /** An image by the hash of its descriptor. */
  | { kind: "open"; hash: string }
  /** Entries of its page table. */
  | { kind: "table"; image: number; first: number; count: number }
  /** Adjacent pages; urgent ones are answered before the others. */
  | { kind: "read"; image: number; first: number; count: number; urgent: boolean }
  /** `count` page numbers of the working set from its n-th on. */
  | { kind: "working-set"; image: number; first: number; count: number }
  /** Has no answer. */
  | { kind: "close"; image: number }
);

/** What a server answers. Views are valid as long as the frame's payload is. */
export type PeerAnswer = { id: number } & (
  | { kind: "found"; hash: string }
  /** There is no such image, or no working set. */
  | { kind: "none" }
  | { kind: "opened"; image: number; pages: number; descriptor: Buffer }
  | { kind: "table"; first: number; entries: Buffer }
  /**
   * Those of `count` pages from `first` on that are not zero, in order. A READ has as many of these as
   * it takes, in order and without gaps.
   */
  | { kind: "pages"; first: number; count: number; encoding: Encoding; bytes: Buffer }
  /** This peer has not all of the pages. */
  | { kind: "missing" }
  | { kind: "error"; code: string; message: string }
  /** Less than was asked for at its end only. */
  | { kind: "working-set"; first: number; pages: number[] }
);

/**
 * Reads what clients send, strictly; the first frame must be a HELLO of this version.
 *
 * @param onHello - called when it was
 */
export function requestReader(emit: (request: PeerRequest) => void, onHello?: () => void): FrameReader {
  return greeted(requestBounds, (type, id, payload) => emit(readRequest(type, id, payload)), onHello);
}

/** Reads what servers send, as strictly. */
export function answerReader(emit: (answer: PeerAnswer) => void, onHello?: () => void): FrameReader {
  return greeted(answerBounds, (type, id, payload) => emit(readAnswer(type, id, payload)), onHello);
}

function greeted(
  bounds: PayloadBounds,
  emit: (type: number, id: number, payload: Buffer) => void,
  onHello?: () => void,
): FrameReader {
  let open = false;
  return new FrameReader(bounds, (type, id, payload) => {
    if (type !== request.hello) {
      if (!open) throw peerFailed(`Frame ${type} before HELLO`);
      emit(type, id, payload);
      return;
    }
    if (open) throw peerFailed("A second HELLO");
    const version = payload.readUInt16BE(4);
    if (id !== 0 || payload.readUInt32BE(0) !== MAGIC) throw peerFailed("No HELLO of a memserver");
    if (version !== PROTOCOL_VERSION) {
      throw peerFailed(`The peer speaks version ${version} of the page protocol, not ${PROTOCOL_VERSION}`);
    }
    open = true;
    onHello?.();
  });
}

function readRequest(type: number, id: number, payload: Buffer): PeerRequest {
  if ((id === 0) !== (type === request.close)) throw peerFailed(`Request ${type} has id ${id}`);
  switch (type) {
    case request.find:
      return { kind: "find", id, key: payload.toString("hex") };
    case request.open:
      return { kind: "open", id, hash: payload.toString("hex") };
    case request.table:
      return { kind: "table", id, ...readRange(payload, MAX_ENTRIES) };
    case request.read: {
      const urgent = payload[10]!;
      if (urgent > 1) throw peerFailed(`READ has flags ${urgent}`);
      const count = payload.readUInt16BE(8);
      checkCount(count, MAX_READ_PAGES);
      return {
        ...{ kind: "read", id, image: payload.readUInt32BE(0), first: payload.readUInt32BE(4), count },
        urgent: urgent === 1,
      };
    }
    case request.workingSet:
      return { kind: "working-set", id, ...readRange(payload, MAX_ENTRIES) };
    default:
      return { kind: "close", id, image: payload.readUInt32BE(0) };
  }
}

function readRange(payload: Buffer, most: number): { image: number; first: number; count: number } {
  const count = payload.readUInt32BE(8);
  checkCount(count, most);
  return { image: payload.readUInt32BE(0), first: payload.readUInt32BE(4), count };
}

function checkCount(count: number, most: number): void {
  if (count === 0 || count > most) throw peerFailed(`${count} entries or pages at once, not 1 to ${most}`);
}

function readAnswer(type: number, id: number, payload: Buffer): PeerAnswer {
  if (id === 0) throw peerFailed(`Answer ${type} has no id`);
  switch (type) {
    case answer.found:
      return { kind: "found", id, hash: payload.toString("hex") };
    case answer.none:
      return { kind: "none", id };
    case answer.opened: {
      const pages = payload.readUInt32BE(4);
      if (pages > MAX_PAGES) throw peerFailed(`An image of ${pages} pages`);
      return { kind: "opened", id, image: payload.readUInt32BE(0), pages, descriptor: payload.subarray(8) };
    }
    case answer.table: {
      const entries = payload.subarray(4);
      if (entries.length % ENTRY_BYTES !== 0) throw peerFailed(`TABLE has ${entries.length} bytes`);
      return { kind: "table", id, first: payload.readUInt32BE(0), entries };
    }
    case answer.pages: {
      const count = payload.readUInt16BE(4);
      const encoding = encodings[payload[6]!];
      checkCount(count, MAX_READ_PAGES);
      if (!encoding) throw peerFailed(`Pages in encoding ${payload[6]}`);
      const bytes = payload.subarray(PAGES_FIELDS);
      return { kind: "pages", id, first: payload.readUInt32BE(0), count, encoding, bytes };
    }
    case answer.missing:
      return { kind: "missing", id };
    case answer.error:
      return { kind: "error", id, ...readError(payload) };
    default: {
      if (payload.length % 4 !== 0) throw peerFailed(`WORKING_SET has ${payload.length} bytes`);
      const pages: number[] = [];
      for (let at = 4; at < payload.length; at += 4) pages.push(payload.readUInt32BE(at));
      return { kind: "working-set", id, first: payload.readUInt32BE(0), pages };
    }
  }
}

function readError(payload: Buffer): { code: string; message: string } {
  const end = 1 + payload[0]!;
  const code = payload.toString("latin1", 1, end);
  if (end > payload.length || !/^[A-Z_]+$/.test(code)) throw peerFailed("ERROR without a code");
  // It goes into a log: no line breaks, and nothing that a terminal would act on.
  return { code, message: payload.toString("utf8", end).replace(/\p{C}/gu, " ") };
}

/** The first frame of both sides. */
export function encodeHello(version = PROTOCOL_VERSION): Buffer {
  const payload = Buffer.alloc(6);
  payload.writeUInt32BE(MAGIC);
  payload.writeUInt16BE(version, 4);
  return frame(request.hello, 0, payload);
}

export function encodeRequest(message: PeerRequest): Buffer {
  const { id } = message;
  switch (message.kind) {
    case "find":
      return frame(request.find, id, Buffer.from(message.key, "hex"));
    case "open":
      return frame(request.open, id, Buffer.from(message.hash, "hex"));
    case "table":
      return frame(request.table, id, u32(message.image, message.first, message.count));
    case "read": {
      const tail = Buffer.from([message.count >> 8, message.count & 0xff, message.urgent ? 1 : 0]);
      return frame(request.read, id, u32(message.image, message.first), tail);
    }
    case "working-set":
      return frame(request.workingSet, id, u32(message.image, message.first, message.count));
    case "close":
      return frame(request.close, id, u32(message.image));
  }
}

export function encodeAnswer(message: PeerAnswer): Buffer {
  const { id } = message;
  switch (message.kind) {
    case "found":
      return frame(answer.found, id, Buffer.from(message.hash, "hex"));
    case "none":
      return frame(answer.none, id);
    case "opened":
      return frame(answer.opened, id, u32(message.image, message.pages), message.descriptor);
    case "table":
      return frame(answer.table, id, u32(message.first), message.entries);
    case "pages": {
      const whole = Buffer.allocUnsafe(PAGES_HEAD_BYTES + message.bytes.length);
      message.bytes.copy(whole, PAGES_HEAD_BYTES);
      return pagesFrame(whole, id, message.first, message.count, message.encoding);
    }
    case "missing":
      return frame(answer.missing, id);
    case "error": {
      const code = Buffer.from(message.code, "latin1");
      const text = Buffer.from(message.message).subarray(0, MAX_MESSAGE_BYTES - 1 - code.length);
      return frame(answer.error, id, Buffer.of(code.length), code, text);
    }
    case "working-set":
      return frame(answer.workingSet, id, u32(message.first, ...message.pages));
  }
}

/**
 * Makes a PAGES frame of a buffer that has the pages' bytes behind `PAGES_HEAD_BYTES`, so that they
 * need not be copied.
 */
export function pagesFrame(
  whole: Buffer,
  id: number,
  first: number,
  count: number,
  encoding: Encoding,
): Buffer {
  const at = writeHead(whole, answer.pages, id, whole.length - HEAD_BYTES);
  whole.writeUInt32BE(first, at);
  whole.writeUInt16BE(count, at + 4);
  whole[at + 6] = encodings.indexOf(encoding);
  return whole;
}

function u32(...values: number[]): Buffer {
  const bytes = Buffer.alloc(values.length * 4);
  for (const [at, value] of values.entries()) bytes.writeUInt32BE(value, at * 4);
  return bytes;
}
