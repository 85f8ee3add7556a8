import { blockOf, readBitmapBlock } from "./commands.ts";
import { Feed, Gathered } from "./feed.ts";
import { checkRange, invalid, PAGE_BYTES, type RamBlock, readName, readSize } from "./format.ts";

const type = {
  shut: 1,
  pong: 2,
  requestNamed: 3,
  request: 4,
  recvBitmap: 5,
  resumeAck: 6,
  switchoverAck: 7,
} as const;

const HEAD_BYTES = 4;
const REQUEST_BYTES = 12;
const BITMAP_END = 0x0123456789abcdefn;

/** What the receiver of a migration stream says. `at`: offset of its first byte on the return path. */
export type ReturnMessage = { at: number } & (
  | { kind: "shut"; status: number }
  | { kind: "pong"; value: number }
  /** Pages that the guest waits for; `named` where the message names the block itself. */
  | { kind: "request"; block: string; start: number; length: number; named: boolean }
  /** Bit n, from the lowest of the first byte on: page n has arrived. */
  | { kind: "recv-bitmap"; block: string; bits: Uint8Array }
  | { kind: "resume-ack" }
  | { kind: "switchover-ack" }
);

/** Largest block that need not be listed: ROMs and tables, of 256 KiB at most in our machines. */
const UNLISTED_BYTES = 16 * 1024 * 1024;

export interface ReturnPathOptions {
  /** Takes requests for blocks that were not listed: QEMU drops its ROMs too and asks for them. @default false */
  unlisted?: boolean | undefined;
}

/** Reads the return path as strictly as `StreamReader` reads the stream. */
export class ReturnPathReader {
  readonly #emit: (message: ReturnMessage) => void;
  readonly #feed = new Feed((bytes, start, end, at) => this.#step(bytes, start, end, at));
  readonly #blocks: ReadonlyMap<string, RamBlock>;
  readonly #unlisted: boolean;
  #step: (bytes: Buffer, start: number, end: number, at: number) => number = this.#message;
  #current: RamBlock | undefined;
  #gathered = new Gathered();

  /**
   * @param blocks - what may be asked for
   * @param emit - takes each message during `push`; its bytes are valid during the call only
   */
  constructor(
    blocks: readonly RamBlock[],
    emit: (message: ReturnMessage) => void,
    { unlisted = false }: ReturnPathOptions = {},
  ) {
    this.#unlisted = unlisted;
    this.#blocks = new Map(blocks.map((block) => [block.name, block]));
    this.#emit = emit;
  }

  /**
   * Takes the next bytes, as many as there are.
   *
   * @throws FlurryError STREAM_INVALID with the offset of what is wrong; from then on always
   */
  push(chunk: Uint8Array): void {
    this.#feed.push(chunk);
  }

  /**
   * Says that no more bytes come.
   *
   * @throws FlurryError STREAM_INVALID when the last message is not complete
   */
  end(): void {
    if (this.#feed.held === 0 && (this.#step === this.#message || this.#step === this.#nothing)) return;
    throw invalid(this.#feed.offset + this.#feed.held, "return path ends in a message");
  }

  #message(bytes: Buffer, start: number, end: number, at: number): number {
    if (end - start < HEAD_BYTES) return -HEAD_BYTES;
    const code = bytes.readUInt16BE(start);
    const length = bytes.readUInt16BE(start + 2);
    checkLength(code, length, at);
    const used = HEAD_BYTES + length;
    if (end - start < used) return -used;
    const body = start + HEAD_BYTES;
    switch (code) {
      case type.shut:
        this.#step = this.#nothing;
        this.#emit({ kind: "shut", at, status: bytes.readUInt32BE(body) });
        break;
      case type.pong:
        this.#emit({ kind: "pong", at, value: bytes.readUInt32BE(body) });
        break;
      case type.requestNamed:
      case type.request:
        this.#request(bytes, body, length, at, code === type.requestNamed);
        break;
      case type.recvBitmap: {
        const block = readBitmapBlock(bytes, body, length, at, this.#blocks);
        this.#step = (...rest) => this.#bitmapSize(block, at, ...rest);
        break;
      }
      case type.resumeAck:
        if (bytes.readUInt32BE(body) !== 1) throw invalid(at, `resume answered ${bytes.readUInt32BE(body)}`);
        this.#emit({ kind: "resume-ack", at });
        break;
      case type.switchoverAck:
        this.#emit({ kind: "switchover-ack", at });
    }
    return used;
  }

  #request(bytes: Buffer, body: number, length: number, at: number, named: boolean): void {
    if (named) {
      const nameLength = length - REQUEST_BYTES - 1;
      if (bytes[body + REQUEST_BYTES] !== nameLength)
        throw invalid(at, `malformed request of ${length} bytes`);
      const name = readName(bytes, body + REQUEST_BYTES + 1, nameLength, at);
      const unlisted = this.#unlisted && !this.#blocks.has(name);
      this.#current = unlisted ? { name, bytes: UNLISTED_BYTES } : blockOf(this.#blocks, name, at);
    }
    if (!this.#current) throw invalid(at, "request without a block");
    const start = readSize(bytes, body, at);
    const size = bytes.readUInt32BE(body + 8);
    checkRange(this.#current, start, size, at);
    this.#emit({ kind: "request", at, block: this.#current.name, start, length: size, named });
  }

  #bitmapSize(block: RamBlock, from: number, bytes: Buffer, start: number, end: number, at: number): number {
    if (end - start < 8) return -8;
    const size = readSize(bytes, start, at);
    const expected = bitmapBytes(block);
    if (size !== expected) throw invalid(at, `bitmap of ${size} bytes instead of ${expected}`);
    this.#gathered = new Gathered();
    this.#step = (...rest) => this.#bitmap(block, from, ...rest);
    return 8;
  }

  #bitmap(block: RamBlock, from: number, bytes: Buffer, start: number, end: number, at: number): number {
    const missing = bitmapBytes(block) - this.#gathered.length;
    const used = Math.min(end - start, missing);
    this.#gathered.add(bytes, start, start + used);
    if (missing > 0) return used;
    if (end - start < 8) return -8;
    if (bytes.readBigUInt64BE(start) !== BITMAP_END) throw invalid(at, "bitmap without an end mark");
    this.#step = this.#message;
    this.#emit({ kind: "recv-bitmap", at: from, block: block.name, bits: this.#gathered.bytes });
    this.#gathered = new Gathered();
    return 8;
  }

  #nothing(_bytes: Buffer, _start: number, _end: number, at: number): number {
    throw invalid(at, "message after the last one");
  }
}

/** QEMU pads bitmaps to 64 bits. */
function bitmapBytes(block: RamBlock): number {
  return Math.ceil(block.bytes / PAGE_BYTES / 64) * 8;
}

function checkLength(code: number, length: number, at: number): void {
  const bounds: Readonly<Record<number, readonly [number, number]>> = {
    [type.shut]: [4, 4],
    [type.pong]: [4, 4],
    [type.requestNamed]: [REQUEST_BYTES + 2, REQUEST_BYTES + 256],
    [type.request]: [REQUEST_BYTES, REQUEST_BYTES],
    [type.recvBitmap]: [2, 256],
    [type.resumeAck]: [4, 4],
    [type.switchoverAck]: [0, 0],
  };
  const [least, most] = bounds[code] ?? [];
  if (least === undefined || most === undefined) throw invalid(at, `unknown message ${code}`);
  if (length < least || length > most) throw invalid(at, `message ${code} has ${length} bytes`);
}

/** The bytes of a message, as QEMU would send it. */
export function encodeReturnMessage(message: ReturnMessage): Buffer {
  switch (message.kind) {
    case "shut":
      return framed(type.shut, u32(message.status));
    case "pong":
      return framed(type.pong, u32(message.value));
    case "request": {
      const range = Buffer.concat([u64(BigInt(message.start)), u32(message.length)]);
      if (!message.named) return framed(type.request, range);
      return framed(type.requestNamed, Buffer.concat([range, named(message.block)]));
    }
    case "recv-bitmap": {
      const tail = [u64(BigInt(message.bits.length)), message.bits, u64(BITMAP_END)];
      return Buffer.concat([framed(type.recvBitmap, named(message.block)), ...tail]);
    }
    case "resume-ack":
      return framed(type.resumeAck, u32(1));
    case "switchover-ack":
      return framed(type.switchoverAck, Buffer.alloc(0));
  }
}

function framed(code: number, payload: Uint8Array): Buffer {
  const head = Buffer.alloc(HEAD_BYTES);
  head.writeUInt16BE(code);
  head.writeUInt16BE(payload.length, 2);
  return Buffer.concat([head, payload]);
}

function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
}

function u64(value: bigint): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64BE(value);
  return bytes;
}

function named(name: string): Buffer {
  return Buffer.from([name.length, ...Buffer.from(name, "latin1")]);
}
