import { Buffer } from "node:buffer";
import { FrameReader } from "../protocol/codec.ts";
import { MARKER } from "../protocol/constants.ts";
import { AgentError } from "../protocol/errors.ts";

export interface SessionEvents {
  /** A marker: a new host speaks from here on. */
  onSession(): void;
  /** A frame's payload, only valid during the call. */
  onPayload(payload: Uint8Array): void;
  /** The stream made no sense; it is dropped up to the next marker. */
  onBroken(error: AgentError): void;
}

/**
 * Cuts the host's byte stream into sessions and frames. A marker begins a session wherever it stands,
 * also within a frame that an earlier host left half-sent. Everything before the first one is dropped.
 */
export class SessionReader {
  readonly #events: SessionEvents;
  #frames: FrameReader | undefined;
  /** The last bytes that came, in which a marker may have begun. */
  #tail = Buffer.alloc(0);

  constructor(events: SessionEvents) {
    this.#events = events;
  }

  push(chunk: Uint8Array): void {
    const bytes = Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength);
    let from = 0;
    const joint = Buffer.concat([this.#tail, bytes.subarray(0, MARKER.length - 1)]);
    const across = this.#tail.length > 0 ? joint.indexOf(MARKER) : -1;
    if (across >= 0) {
      from = across + MARKER.length - this.#tail.length;
      this.#begin();
    }
    for (;;) {
      const at = bytes.indexOf(MARKER, from);
      this.#read(bytes.subarray(from, at < 0 ? bytes.length : at));
      if (at < 0) break;
      from = at + MARKER.length;
      this.#begin();
    }
    const rest = Buffer.concat([this.#tail, bytes.subarray(from)]);
    this.#tail = Buffer.from(rest.subarray(Math.max(0, rest.length - MARKER.length + 1)));
  }

  #begin(): void {
    this.#tail = Buffer.alloc(0);
    this.#frames = new FrameReader();
    this.#frames.push(MARKER, () => undefined);
    this.#events.onSession();
  }

  #read(bytes: Uint8Array): void {
    if (bytes.length === 0) return;
    try {
      this.#frames?.push(bytes, (payload) => this.#events.onPayload(payload));
    } catch (error) {
      if (!(error instanceof AgentError)) throw error;
      this.#frames = undefined;
      this.#events.onBroken(error);
    }
  }
}
