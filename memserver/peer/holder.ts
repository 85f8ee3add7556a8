import type { Holder } from "../image/holders.ts";
import type { FetchOptions } from "../image/page-source.ts";
import type { LaneSource, PeerAddress } from "./lane.ts";

/**
 * The memserver of another host as a holder of one image. It connects, and opens the image, when it is
 * asked. The page table is not transferred again: each page is checked by whoever asks.
 */
export class PeerHolder implements Holder, AsyncDisposable {
  readonly name: string;
  readonly #lanes: LaneSource;
  readonly #peer: PeerAddress;
  readonly #hash: string;

  /** Made by `PeerPool.holder`. */
  constructor(lanes: LaneSource, peer: PeerAddress, hash: string) {
    this.name = `${peer.host}:${peer.port}`;
    this.#lanes = lanes;
    this.#peer = peer;
    this.#hash = hash;
  }

  /** @throws FlurryError PEER_FAILED; ABORTED */
  async read(first: number, count: number, options: FetchOptions = {}): Promise<Buffer | undefined> {
    const { urgent = false, signal } = options;
    const { lane, fresh } = await this.#lanes.lane(this.#peer, urgent, signal);
    try {
      return await lane.read(this.#hash, first, count, { urgent, signal });
    } catch (error) {
      // The peer closes what was idle: no failure, unless a new connection has the same.
      if (fresh || lane.client.ended !== "closed" || signal?.aborted) throw error;
    }
    const again = await this.#lanes.lane(this.#peer, urgent, signal);
    return await again.lane.read(this.#hash, first, count, { urgent, signal });
  }

  /** Lets the peer close the image, when no other holder is for it. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#lanes.forget(this.#peer, this.#hash);
  }
}
