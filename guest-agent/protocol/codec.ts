import { Packr } from "msgpackr";
import { limits, MARKER, messageTypes, type StreamNumber } from "./constants.ts";
import { AgentError } from "./errors.ts";

const packr = new Packr({ useRecords: false, variableMapSize: true });

/** A request or stream message as a whole frame: length, then `[type, id, fields]`. */
export function encodeMessage(type: number, id: number, fields?: Record<string, unknown>): Uint8Array {
  const payload = packr.pack(fields === undefined ? [type, id] : [type, id, fields]);
  if (payload.length > limits.FRAME_MAX) {
    const reason = `it takes ${payload.length} bytes, a frame holds ${limits.FRAME_MAX}`;
    throw new AgentError("BAD_ARGUMENT", `Cannot send a message of type ${type}: ${reason}`, {
      errno: "E2BIG",
    });
  }
  const frame = new Uint8Array(4 + payload.length);
  new DataView(frame.buffer).setUint32(0, payload.length);
  frame.set(payload, 4);
  return frame;
}

const DATA_HEAD = 20;

/**
 * A data message, written by hand: the bytes are copied once. The layout is
 * `length 93 type ce<id> 82 a1 's' stream a1 'd' c5<count> bytes`.
 */
export function encodeData(id: number, stream: StreamNumber, chunk: Uint8Array): Uint8Array {
  if (chunk.length === 0 || chunk.length > limits.CHUNK_MAX) {
    throw new AgentError("BAD_ARGUMENT", `Cannot send a chunk of ${chunk.length} bytes`);
  }
  const frame = new Uint8Array(DATA_HEAD + chunk.length);
  const view = new DataView(frame.buffer);
  view.setUint32(0, frame.length - 4);
  view.setUint8(4, 0x93);
  view.setUint8(5, messageTypes.DATA);
  view.setUint8(6, 0xce);
  view.setUint32(7, id);
  view.setUint8(11, 0x82);
  view.setUint16(12, 0xa173);
  view.setUint8(14, stream);
  view.setUint16(15, 0xa164);
  view.setUint8(17, 0xc5);
  view.setUint16(18, chunk.length);
  frame.set(chunk, DATA_HEAD);
  return frame;
}

/**
 * Cuts the guest's byte stream into payloads. Everything before the first marker belongs to a
 * session of somebody else and is dropped; later markers are skipped. A length above the cap is
 * refused before a single byte behind it is kept.
 */
export class FrameReader {
  #greeted = false;
  #matched = 0;
  #held = new Uint8Array(0);
  #fill = 0;

  /**
   * Calls `onPayload` for every frame that `chunk` completes. The payload is only valid during the
   * call: what is kept must be copied.
   *
   * @throws AgentError AGENT_PROTOCOL for a frame above the cap
   */
  push(chunk: Uint8Array, onPayload: (payload: Uint8Array) => void): void {
    let at = this.#greeted ? 0 : this.#findMarker(chunk);
    while (at < chunk.length) {
      if (this.#fill > 0) {
        at = this.#complete(chunk, at, onPayload);
        continue;
      }
      const size = pieceSize(chunk, at, chunk.length - at);
      if (size === undefined || chunk.length - at < size) {
        this.#hold(chunk.subarray(at));
        return;
      }
      deliver(chunk, at, size, onPayload);
      at += size;
    }
  }

  #findMarker(chunk: Uint8Array): number {
    for (let at = 0; at < chunk.length; at++) {
      // The first byte of the marker does not occur in it again, so no other overlap is possible.
      if (chunk[at] === MARKER[this.#matched]) this.#matched++;
      else this.#matched = chunk[at] === MARKER[0] ? 1 : 0;
      if (this.#matched === MARKER.length) {
        this.#greeted = true;
        return at + 1;
      }
    }
    return chunk.length;
  }

  /** Adds to the piece that an earlier chunk began; each byte is copied once, however they arrive. */
  #complete(chunk: Uint8Array, from: number, onPayload: (payload: Uint8Array) => void): number {
    let at = from;
    for (;;) {
      const size = pieceSize(this.#held, 0, this.#fill);
      const want = (size ?? 4) - this.#fill;
      if (size !== undefined && want === 0) {
        this.#fill = 0;
        deliver(this.#held, 0, size, onPayload);
        return at;
      }
      if (at === chunk.length) return at;
      const part = chunk.subarray(at, at + want);
      this.#hold(part);
      at += part.length;
    }
  }

  #hold(bytes: Uint8Array): void {
    const size = pieceSize(bytes, 0, this.#fill === 0 ? bytes.length : 0) ?? 0;
    const need = Math.max(this.#fill + bytes.length, size);
    if (this.#held.length < need) {
      const grown = new Uint8Array(
        Math.min(Math.max(need, 1024, 2 * this.#held.length), 4 + limits.FRAME_MAX),
      );
      grown.set(this.#held.subarray(0, this.#fill));
      this.#held = grown;
    }
    this.#held.set(bytes, this.#fill);
    this.#fill += bytes.length;
  }
}

function deliver(
  bytes: Uint8Array,
  at: number,
  size: number,
  onPayload: (payload: Uint8Array) => void,
): void {
  if (bytes[at] === MARKER[0]) return;
  onPayload(bytes.subarray(at + 4, at + size));
}

/** Size of the frame or marker at `at`, length included; undefined if `have` bytes do not tell yet. */
function pieceSize(bytes: Uint8Array, at: number, have: number): number | undefined {
  if (have === 0) return undefined;
  if (bytes[at] === MARKER[0]) {
    for (let i = 1; i < Math.min(have, MARKER.length); i++) {
      if (bytes[at + i] !== MARKER[i])
        throw new AgentError("AGENT_PROTOCOL", "The guest sent a broken marker");
    }
    return MARKER.length;
  }
  if (have < 4) return undefined;
  const size = new DataView(bytes.buffer, bytes.byteOffset + at, 4).getUint32(0);
  if (size > limits.FRAME_MAX) {
    throw new AgentError(
      "AGENT_PROTOCOL",
      `The guest sent a frame of ${size} bytes, at most ${limits.FRAME_MAX} are allowed`,
    );
  }
  return 4 + size;
}
