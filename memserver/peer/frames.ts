import { FlurryError } from "../../errors/errors.ts";
import { Feed, Gathered } from "../stream/feed.ts";

/** Of each frame: u32 length of what follows it, u8 type, u32 request id, payload. Big endian. */
export const HEAD_BYTES = 9;
const LENGTH_BYTES = 4;
/** Larger payloads are gathered as they come; up to here there is room from the start. */
const WHOLE_BYTES = 4096;

/** Least and most bytes of the payload, by frame type. What is not listed is refused. */
export type PayloadBounds = Readonly<Record<number, readonly [least: number, most: number]>>;

/** The error for a peer that does not keep to the protocol, or is not there. */
export function peerFailed(reason: string, cause?: unknown): FlurryError {
  return new FlurryError("PEER_FAILED", reason, cause === undefined ? {} : { cause });
}

/**
 * Cuts a stream into frames. It holds at most one frame, of a length that its type may have, and
 * takes no memory for bytes that were only announced.
 */
export class FrameReader {
  readonly #bounds: PayloadBounds;
  readonly #emit: (type: number, id: number, payload: Buffer) => void;
  readonly #feed = new Feed((bytes, start, end, at) => this.#step(bytes, start, end, at));
  #step: (bytes: Buffer, start: number, end: number, at: number) => number = this.#head;
  #frame = { type: 0, id: 0, length: 0 };
  #gathered = new Gathered();

  /** @param emit - takes each frame during `push`; its payload is valid during the call only */
  constructor(bounds: PayloadBounds, emit: (type: number, id: number, payload: Buffer) => void) {
    this.#bounds = bounds;
    this.#emit = emit;
  }

  /** How many bytes there are of a frame that is not complete. */
  get held(): number {
    return this.#feed.held + this.#gathered.length;
  }

  /**
   * Takes the next bytes, as many as there are.
   *
   * @throws FlurryError PEER_FAILED with the offset of what is wrong; from then on always
   */
  push(chunk: Uint8Array): void {
    this.#feed.push(chunk);
  }

  #head(bytes: Buffer, start: number, end: number, at: number): number {
    if (end - start < HEAD_BYTES) return -HEAD_BYTES;
    const length = bytes.readUInt32BE(start) - (HEAD_BYTES - LENGTH_BYTES);
    const type = bytes[start + LENGTH_BYTES]!;
    const [least, most] = this.#bounds[type] ?? [];
    if (least === undefined || most === undefined) throw peerFailed(`Unknown frame ${type} at offset ${at}`);
    if (length < least || length > most) {
      throw peerFailed(`Frame ${type} has ${length} bytes at offset ${at}`);
    }
    this.#frame = { type, id: bytes.readUInt32BE(start + LENGTH_BYTES + 1), length };
    this.#step = this.#body;
    if (length > 0) return HEAD_BYTES;
    this.#finish(Buffer.alloc(0));
    return HEAD_BYTES;
  }

  #body(bytes: Buffer, start: number, end: number): number {
    const missing = this.#frame.length - this.#gathered.length;
    if (this.#gathered.length === 0) {
      if (end - start >= missing) {
        this.#finish(bytes.subarray(start, start + missing));
        return missing;
      }
      if (missing <= WHOLE_BYTES) return -missing;
    }
    const used = Math.min(end - start, missing);
    this.#gathered.add(bytes, start, start + used);
    if (used < missing) return used;
    const payload = this.#gathered.bytes;
    this.#gathered = new Gathered();
    this.#finish(payload);
    return used;
  }

  #finish(payload: Buffer): void {
    const { type, id } = this.#frame;
    this.#step = this.#head;
    this.#emit(type, id, payload);
  }
}

/** Begins a frame in a buffer that has room for all of it. Returns where the payload goes. */
export function writeHead(buffer: Buffer, type: number, id: number, payloadBytes: number): number {
  buffer.writeUInt32BE(HEAD_BYTES - LENGTH_BYTES + payloadBytes);
  buffer[LENGTH_BYTES] = type;
  buffer.writeUInt32BE(id, LENGTH_BYTES + 1);
  return HEAD_BYTES;
}

export function frame(type: number, id: number, ...payload: readonly Uint8Array[]): Buffer {
  const head = Buffer.alloc(HEAD_BYTES);
  writeHead(
    head,
    type,
    id,
    payload.reduce((sum, part) => sum + part.length, 0),
  );
  return Buffer.concat([head, ...payload]);
}
