import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { codeOf, FlurryError } from "../../errors/errors.ts";
import { encodeWorkingSet } from "../child/working-set.ts";
import { BulkSlots } from "../image/bulk-slots.ts";
import { RemoteImage } from "../image/remote-image.ts";
import { SparseImage } from "../image/sparse-image.ts";
import { installationKeys } from "../peer/keys.ts";
import type { PeerAddress } from "../peer/lane.ts";
import { type PeerImageDetails, PeerPool } from "../peer/pool.ts";
import { PageServer } from "../peer/server.ts";
import type { ControlAnswer, ControlEvent, ControlRequest } from "./control.ts";
import type { OpenImages, RemoteSource } from "./open-images.ts";
import { readDescriptor, readTable, readWorkingSet } from "./open-images.ts";
import { ImagesOnDisk } from "./served-images.ts";

/** First and longest wait in milliseconds before the rest of an image is asked for again. */
const FIRST_WAIT_MS = 1000;
const LONGEST_WAIT_MS = 30_000;

export interface PeersOptions {
  /** Directory with the keys of the installation; made when they are first needed. */
  keys: string;
  emit: (event: ControlEvent) => void;
  /** Told what went wrong with a peer, where that is nobody's error here. */
  onTrouble: (error: unknown) => void;
}

/** Other memservers: whose images come to this host, and those that get images from here. */
export class Peers implements AsyncDisposable {
  readonly #options: PeersOptions;
  /** What is on its way in bulk, of all images together. */
  readonly #slots = new BulkSlots();
  readonly #servers: PageServer[] = [];
  readonly #stop = new AbortController();
  #pool: Promise<PeerPool> | undefined;

  constructor(options: PeersOptions) {
    this.#options = options;
  }

  /**
   * Asks peers which image was made for a key. Those that cannot be asked have none.
   *
   * @throws FlurryError PEER_FAILED when none of them can be asked, BAD_ARGUMENT
   */
  async find(key: string, holders: readonly string[]): Promise<ControlAnswer<"find">> {
    const pool = await this.#connections();
    const { signal } = this.#stop;
    const asked = await Promise.allSettled(
      holders.map((holder) => pool.find(parseAddress(holder), key, signal)),
    );
    const failures = asked.filter((one) => one.status === "rejected");
    if (failures.length === asked.length && failures[0]) throw failures[0].reason;
    for (const { reason } of failures) this.#options.onTrouble(reason);
    const found = asked.map((one) => (one.status === "fulfilled" ? one.value : undefined));
    const image = found.find((one) => one !== undefined);
    return {
      image: image ?? null,
      holders: holders.filter((_, at) => image !== undefined && found[at] === image),
    };
  }

  /** Opens an image of other hosts in a directory, where it is kept as it comes. @throws as `OpenImages.open` */
  async open(hash: string, dir: string, holders: readonly string[]): Promise<RemoteSource> {
    const peers = holders.map(parseAddress);
    const pool = await this.#connections();
    if (!(await isKnown(hash, dir))) await this.#fetchDetails(pool, peers, hash, dir);
    const descriptor = await readDescriptor(hash, dir);
    const table = await readTable(dir, descriptor);
    await using stack = new AsyncDisposableStack();
    const asked = peers.map((peer) => stack.use(pool.holder(peer, hash)));
    const image = new RemoteImage({
      name: hash,
      table,
      // Disposed of with the image.
      local: SparseImage.open(join(dir, "memory"), table.pages),
      holders: asked,
      slots: this.#slots,
      onComplete: () => this.#options.emit({ event: "image-complete", image: hash }),
      onDegraded: (error) =>
        this.#options.emit({ event: "image-degraded", image: hash, reason: messageOf(error) }),
    });
    stack.use(image);
    const stop = new AbortController();
    const workingSet = await readWorkingSet(dir, table.pages);
    const fetching = this.#fetchAll(image, workingSet, AbortSignal.any([stop.signal, this.#stop.signal]));
    stack.defer(async () => {
      stop.abort();
      await fetching;
    });
    const owned = stack.move();
    return { source: closing(image, () => owned.disposeAsync()), workingSet };
  }

  /** Serves images to peers: those that are open, and those in a directory. Returns the port. */
  async listen(request: Extract<ControlRequest, { op: "listen" }>, images: OpenImages): Promise<number> {
    const server = await PageServer.listen({
      host: request.host,
      port: request.port,
      keys: await installationKeys(this.#options.keys),
      provider: new ImagesOnDisk(request.dir, images),
      onTrouble: this.#options.onTrouble,
    });
    this.#servers.push(server);
    return server.port;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort();
    await Promise.all(this.#servers.map((server) => server[Symbol.asyncDispose]()));
    await (await this.#pool)?.[Symbol.asyncDispose]();
  }

  #connections(): Promise<PeerPool> {
    this.#pool ??= installationKeys(this.#options.keys).then((keys) => new PeerPool({ keys }));
    return this.#pool;
  }

  /** Puts `descriptor`, `pages` and `working-set` into the directory, from the first peer that has them. */
  async #fetchDetails(
    pool: PeerPool,
    peers: readonly PeerAddress[],
    hash: string,
    dir: string,
  ): Promise<void> {
    const reasons: string[] = [];
    for (const peer of peers) {
      try {
        const details = await pool.open(peer, hash, this.#stop.signal);
        if (details) return await writeDetails(details, dir);
        reasons.push(`${peer.host}:${peer.port} has it not`);
      } catch (error) {
        if (codeOf(error) !== "PEER_FAILED") throw error;
        reasons.push(messageOf(error));
      }
    }
    const why = reasons.length === 0 ? "it is not all here, and no other host is named" : reasons.join("; ");
    throw new FlurryError("PAGES_UNAVAILABLE", `Nobody can give image "${hash}": ${why}`);
  }

  /** Brings all of an image here, however long that takes. */
  async #fetchAll(image: RemoteImage, first: Uint32Array | undefined, signal: AbortSignal): Promise<void> {
    for (let wait = FIRST_WAIT_MS; !signal.aborted; wait = Math.min(wait * 2, LONGEST_WAIT_MS)) {
      try {
        await image.prefetch(first, { signal });
        return;
      } catch (error) {
        if (signal.aborted) return;
        this.#options.onTrouble(error);
      }
      await delay(wait, undefined, { signal }).catch(() => undefined);
    }
  }
}

/** `HOST:PORT`, with an IPv6 address in brackets. @throws FlurryError BAD_ARGUMENT */
export function parseAddress(text: string): PeerAddress {
  const [, bracketed, plain, port] = /^(?:\[([0-9a-f:.]+)\]|([^:[\]]+)):(\d{1,5})$/i.exec(text) ?? [];
  const host = bracketed ?? plain;
  if (host !== undefined && Number(port) >= 1 && Number(port) <= 65_535) return { host, port: Number(port) };
  throw new FlurryError("BAD_ARGUMENT", `"${text}" is no address of a memserver: it takes HOST:PORT`);
}

async function isKnown(hash: string, dir: string): Promise<boolean> {
  try {
    await readTable(dir, await readDescriptor(hash, dir));
    return true;
  } catch (error) {
    const code = codeOf(error);
    // Whatever was cut short is fetched again.
    if (code === "ENOENT" || code === "IMAGE_CORRUPT") return false;
    throw error;
  }
}

async function writeDetails({ descriptor, table, workingSet }: PeerImageDetails, dir: string): Promise<void> {
  await writeFile(join(dir, "descriptor"), descriptor);
  await writeFile(join(dir, "pages"), table.bytes);
  if (workingSet && workingSet.length > 0)
    await writeFile(join(dir, "working-set"), encodeWorkingSet(workingSet));
}

/** The image, with more to do when it is disposed. */
function closing(image: RemoteImage, close: () => Promise<void>): RemoteSource["source"] {
  return {
    pages: image.pages,
    get complete() {
      return image.complete;
    },
    isZero: (page) => image.isZero(page),
    read: (page, count, target, at) => image.read(page, count, target, at),
    fetch: (page, count, options) => image.fetch(page, count, options),
    [Symbol.asyncDispose]: close,
  };
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
