import type { FetchOptions } from "../image/page-source.ts";
import { orAborted } from "../waiting.ts";
import type { PeerImage } from "./answers.ts";
import type { PeerClient } from "./client.ts";

/** Where a memserver listens for others. */
export interface PeerAddress {
  host: string;
  port: number;
}

/** Connections by peer. */
export interface LaneSource {
  /**
   * The connection to a peer.
   *
   * @returns `fresh` when it was made for this call
   * @throws FlurryError PEER_FAILED; ABORTED
   */
  lane(peer: PeerAddress, urgent: boolean, signal?: AbortSignal): Promise<{ lane: Lane; fresh: boolean }>;
  /** A holder of the image was disposed of. */
  forget(peer: PeerAddress, hash: string): Promise<void>;
}

/** One connection, and the images that are open on it. */
export class Lane {
  readonly address: string;
  readonly client: PeerClient;
  readonly #images = new Map<string, Promise<PeerImage | undefined>>();

  constructor(address: string, client: PeerClient) {
    this.address = address;
    this.client = client;
  }

  /** The image, opened once; undefined if the peer does not have it now. */
  async image(hash: string, { urgent, signal }: FetchOptions): Promise<PeerImage | undefined> {
    let opening = this.#images.get(hash);
    if (!opening) {
      opening = this.client.open(hash, { urgent });
      this.#images.set(hash, opening);
      const forget = () => this.#images.delete(hash);
      opening.then((image) => image ?? forget(), forget);
    }
    return await orAborted(opening, signal);
  }

  async read(hash: string, first: number, count: number, options: FetchOptions): Promise<Buffer | undefined> {
    const image = await this.image(hash, options);
    return image && (await this.client.read(image, first, count, options));
  }

  async close(hash: string): Promise<void> {
    const opening = this.#images.get(hash);
    this.#images.delete(hash);
    const [result] = await Promise.allSettled([opening]);
    if (result.status === "fulfilled" && result.value) this.client.close(result.value);
  }
}
