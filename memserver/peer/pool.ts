import { codeOf } from "../../errors/errors.ts";
import type { PageTable } from "../image/page-table.ts";
import { orAborted, throwIfAborted } from "../waiting.ts";
import { PeerClient, type PeerClientOptions } from "./client.ts";
import { peerFailed } from "./frames.ts";
import { PeerHolder } from "./holder.ts";
import { Lane, type LaneSource, type PeerAddress } from "./lane.ts";

export type PeerPoolOptions = Pick<PeerClientOptions, "keys" | "connectMs" | "requestMs">;

/** What one must know of an image to have its pages from others; checked against its hash. */
export interface PeerImageDetails {
  /** Encoded. */
  descriptor: Buffer;
  table: PageTable;
  /** The pages that a child needs first, in order, if the peer knows. Not checked. */
  workingSet: Uint32Array | undefined;
}

/**
 * The connections to other memservers, shared by all images: for each peer one for urgent reads and one
 * for all else, so that what a guest waits for is not behind megabytes in the network's queues. Made
 * when they are needed, and again when they were lost.
 */
export class PeerPool implements LaneSource, AsyncDisposable {
  readonly #options: PeerPoolOptions;
  readonly #lanes = new Map<string, Promise<Lane>>();
  /** Holders by peer and image. */
  readonly #holders = new Map<string, number>();
  readonly #closing = new AbortController();
  #endedBytes = 0;
  readonly #open = new Set<Lane>();

  constructor(options: PeerPoolOptions) {
    this.#options = options;
  }

  /** Bytes that came in over all connections, before decompression. */
  get receivedBytes(): number {
    return [...this.#open].reduce((sum, { client }) => sum + client.receivedBytes, this.#endedBytes);
  }

  /** As `PeerClient.find`. */
  async find(peer: PeerAddress, key: string, signal?: AbortSignal): Promise<string | undefined> {
    const { lane } = await this.lane(peer, false, signal);
    return await lane.client.find(key, { signal });
  }

  /**
   * Descriptor, page table and working set of an image by the hash of its descriptor; undefined if the
   * peer does not have it.
   *
   * @throws FlurryError PEER_FAILED; ABORTED; BAD_ARGUMENT
   */
  async open(peer: PeerAddress, hash: string, signal?: AbortSignal): Promise<PeerImageDetails | undefined> {
    const { lane } = await this.lane(peer, false, signal);
    const image = await lane.image(hash, { signal });
    if (!image) return undefined;
    const table = await lane.client.table(image, { signal });
    const workingSet = await lane.client.workingSet(image, { signal });
    return { descriptor: image.descriptor, table, workingSet };
  }

  /** A peer as a holder of an image. Dispose of it after the image that asks it. */
  holder(peer: PeerAddress, hash: string): PeerHolder {
    const key = `${addressOf(peer)} ${hash}`;
    this.#holders.set(key, (this.#holders.get(key) ?? 0) + 1);
    void this.#warmUp(peer, hash);
    return new PeerHolder(this, peer, hash);
  }

  /** Connects and opens the image ahead of need: a guest that waits for its first page has no time for it. */
  async #warmUp(peer: PeerAddress, hash: string): Promise<void> {
    try {
      const { lane } = await this.lane(peer, true);
      await lane.image(hash, { urgent: true });
    } catch (error) {
      // Whoever asks the holder learns of it.
      if (codeOf(error) !== "PEER_FAILED") throw error;
    }
  }

  /** As `LaneSource.forget`. */
  async forget(peer: PeerAddress, hash: string): Promise<void> {
    const key = `${addressOf(peer)} ${hash}`;
    const left = (this.#holders.get(key) ?? 1) - 1;
    if (left > 0) {
      this.#holders.set(key, left);
      return;
    }
    this.#holders.delete(key);
    const open = [...this.#open].filter(({ address }) => address === addressOf(peer));
    await Promise.all(open.map((lane) => lane.close(hash)));
  }

  /** As `LaneSource.lane`. */
  async lane(
    peer: PeerAddress,
    urgent: boolean,
    signal?: AbortSignal,
  ): Promise<{ lane: Lane; fresh: boolean }> {
    throwIfAborted(signal);
    const key = `${addressOf(peer)} ${urgent}`;
    const there = this.#lanes.get(key);
    const connecting = there ?? this.#connect(key, peer);
    return { lane: await orAborted(connecting, signal), fresh: there === undefined };
  }

  /** Not ended by who asked first: others may wait for it. */
  #connect(key: string, peer: PeerAddress): Promise<Lane> {
    const connecting = this.#connected(peer);
    this.#lanes.set(key, connecting);
    const gone = () => {
      if (this.#lanes.get(key) === connecting) this.#lanes.delete(key);
    };
    void connecting.then((lane) => lane.client.closed.then(gone), gone);
    return connecting;
  }

  async #connected(peer: PeerAddress): Promise<Lane> {
    const client = await this.#client(peer);
    const lane = new Lane(addressOf(peer), client);
    this.#open.add(lane);
    void client.closed.then(() => {
      this.#open.delete(lane);
      this.#endedBytes += client.receivedBytes;
    });
    return lane;
  }

  async #client(peer: PeerAddress): Promise<PeerClient> {
    const { signal } = this.#closing;
    try {
      return await PeerClient.connect({ ...peer, ...this.#options, signal });
    } catch (error) {
      if (!signal.aborted) throw error;
      // Nobody's abort who waits for it.
      throw peerFailed(`Peer ${addressOf(peer)}: the connections were closed`, error);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closing.abort(new Error("The connections were closed"));
    const lanes = await Promise.allSettled(this.#lanes.values());
    await Promise.all(
      lanes.map(async (result) => {
        if (result.status === "fulfilled") await result.value.client[Symbol.asyncDispose]();
      }),
    );
  }
}

function addressOf({ host, port }: PeerAddress): string {
  return `${host}:${port}`;
}
