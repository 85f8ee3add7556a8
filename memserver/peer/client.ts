import type { Duplex } from "node:stream";
import { connect, type TLSSocket } from "node:tls";
import { FlurryError } from "../../errors/errors.ts";
import { ENTRY_BYTES, PageTable } from "../image/page-table.ts";
import { orAborted, throwIfAborted } from "../waiting.ts";
import { GatheredPages, misplaced, type PeerImage, readImage } from "./answers.ts";
import { ClientSession, type RequestOptions } from "./client-session.ts";
import { peerFailed } from "./frames.ts";
import type { InstallationKeys } from "./keys.ts";
import { MAX_ENTRIES, MAX_READ_PAGES } from "./messages.ts";
import { checkPeer, clientTls } from "./tls.ts";

const SHA256 = /^[0-9a-f]{64}$/;

export interface PeerClientOptions {
  host: string;
  port: number;
  keys: InstallationKeys;
  /** Milliseconds for the connection to be open, with TLS and HELLO. @default 5000 */
  connectMs?: number | undefined;
  /** Milliseconds in which each request must be answered in full. @default 5000 */
  requestMs?: number | undefined;
  signal?: AbortSignal | undefined;
}

/**
 * A connection to the memserver of another host. What it hands out as descriptor and page table is
 * checked against the hash that it was asked for; pages are the caller's to check.
 */
export class PeerClient implements AsyncDisposable {
  readonly #session: ClientSession;
  readonly #name: string;

  private constructor(session: ClientSession, name: string) {
    this.#session = session;
    this.#name = name;
  }

  /**
   * Connects by TLS, with a server that has the installation's key only.
   *
   * @throws FlurryError PEER_FAILED; ABORTED
   */
  static async connect(options: PeerClientOptions): Promise<PeerClient> {
    const { host, port, keys, connectMs = 5000, signal } = options;
    throwIfAborted(signal);
    const name = `${host}:${port}`;
    const socket = connect({ host, port, ...clientTls(keys) });
    const late = AbortSignal.timeout(connectMs);
    try {
      await orAborted(secured(socket, name, keys), signal ? AbortSignal.any([signal, late]) : late);
      return await PeerClient.over(socket, { name, requestMs: options.requestMs, signal, late });
    } catch (error) {
      socket.destroy();
      throwIfAborted(signal);
      if (late.aborted) throw peerFailed(`Peer ${name}: no connection in ${connectMs} ms`, error);
      throw error;
    }
  }

  /**
   * Greets a peer on a connection that is open and trusted.
   *
   * @throws FlurryError PEER_FAILED; ABORTED
   */
  static async over(
    socket: Duplex,
    options: {
      name: string;
      requestMs?: number | undefined;
      signal?: AbortSignal | undefined;
      late?: AbortSignal;
    },
  ): Promise<PeerClient> {
    const session = new ClientSession(socket, options);
    try {
      const signals = [options.signal, options.late].filter((signal) => signal !== undefined);
      await session.greeted(AbortSignal.any(signals));
    } catch (error) {
      await session[Symbol.asyncDispose]();
      throw error;
    }
    return new PeerClient(session, options.name);
  }

  /** Why the connection ended. Never rejects. */
  get closed(): Promise<FlurryError> {
    return this.#session.closed;
  }

  /** How the connection ended, if it did: by a request without an answer in time, or otherwise. */
  get ended(): "late" | "closed" | undefined {
    return this.#session.ended;
  }

  /** Bytes that came in, before decompression. */
  get receivedBytes(): number {
    return this.#session.receivedBytes;
  }

  /**
   * The hash of the image's descriptor that the peer has under a request key, both in hex; undefined if
   * it has none.
   *
   * @throws FlurryError PEER_FAILED; ABORTED; BAD_ARGUMENT
   */
  async find(key: string, options?: RequestOptions): Promise<string | undefined> {
    checkHash(key);
    return await this.#session.request<string | undefined>(
      { kind: "find", key },
      (answer) => {
        if (answer.kind === "none") return { value: undefined };
        if (answer.kind === "found") return { value: answer.hash };
        throw misplaced(answer, "find");
      },
      options,
    );
  }

  /**
   * Opens an image by the hash of its descriptor; undefined if the peer does not have it.
   *
   * @throws FlurryError PEER_FAILED, also when what comes has another hash; ABORTED; BAD_ARGUMENT
   */
  async open(hash: string, options?: RequestOptions): Promise<PeerImage | undefined> {
    checkHash(hash);
    return await this.#session.request<PeerImage | undefined>(
      { kind: "open", hash },
      (answer) => {
        if (answer.kind === "none") return { value: undefined };
        if (answer.kind !== "opened") throw misplaced(answer, "open");
        return { value: readImage(hash, answer.image, answer.pages, Buffer.from(answer.descriptor)) };
      },
      options,
    );
  }

  /**
   * The page table of an image, checked.
   *
   * @throws FlurryError PEER_FAILED, also when it is not the descriptor's; ABORTED
   */
  async table(image: PeerImage, options?: RequestOptions): Promise<PageTable> {
    const bytes = Buffer.alloc(image.pages * ENTRY_BYTES);
    for (let first = 0; first < image.pages; first += MAX_ENTRIES) {
      const count = Math.min(MAX_ENTRIES, image.pages - first);
      await this.#session.request<true>(
        { kind: "table", image: image.handle, first, count },
        (answer) => {
          if (answer.kind !== "table") throw misplaced(answer, "table");
          if (answer.first !== first || answer.entries.length !== count * ENTRY_BYTES) {
            throw peerFailed(`${answer.entries.length} bytes of the table at ${answer.first}, not ${first}`);
          }
          answer.entries.copy(bytes, first * ENTRY_BYTES);
          return { value: true };
        },
        options,
      );
    }
    const table = new PageTable(bytes);
    if (table.root === image.tableHash) return table;
    throw peerFailed(`Peer ${this.#name}: its page table has not the hash ${image.tableHash}`);
  }

  /**
   * The pages that a child needs first, in order; undefined if the peer knows none. Not checked but for
   * being pages of the image.
   *
   * @throws FlurryError PEER_FAILED; ABORTED
   */
  async workingSet(image: PeerImage, options?: RequestOptions): Promise<Uint32Array | undefined> {
    const all: number[] = [];
    for (let last = false; !last; ) {
      const first = all.length;
      const some = await this.#session.request<number[] | undefined>(
        { kind: "working-set", image: image.handle, first, count: MAX_ENTRIES },
        (answer) => {
          if (answer.kind === "none") return { value: undefined };
          if (answer.kind !== "working-set") throw misplaced(answer, "working set");
          const { pages } = answer;
          if (answer.first !== first || pages.some((page) => page >= image.pages)) {
            throw peerFailed("A working set of other pages");
          }
          if (first + pages.length > image.pages) throw peerFailed("A working set larger than its image");
          return { value: pages };
        },
        options,
      );
      if (!some) return undefined;
      for (const page of some) all.push(page);
      last = some.length < MAX_ENTRIES;
    }
    return Uint32Array.from(all);
  }

  /**
   * The pages of a range that are not zero, in order, not checked; undefined if the peer has not all of
   * them.
   *
   * @param count - 1 to 256
   * @throws FlurryError PEER_FAILED; ABORTED
   */
  async read(
    image: PeerImage,
    first: number,
    count: number,
    options: RequestOptions = {},
  ): Promise<Buffer | undefined> {
    if (count < 1 || count > MAX_READ_PAGES || first < 0 || first + count > image.pages) {
      throw new FlurryError("BAD_ARGUMENT", `Cannot read ${count} pages at ${first} of ${image.pages}`);
    }
    const urgent = options.urgent ?? false;
    const gathered = new GatheredPages(first, count);
    return await this.#session.request<Buffer | undefined>(
      { kind: "read", image: image.handle, first, count, urgent },
      (answer) => {
        if (answer.kind === "missing") return { value: undefined };
        if (answer.kind !== "pages") throw misplaced(answer, "read");
        return gathered.add(answer) ? { value: gathered.bytes } : undefined;
      },
      options,
    );
  }

  /** Gives an image up. */
  close(image: PeerImage): void {
    this.#session.tell({ kind: "close", id: 0, image: image.handle });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#session[Symbol.asyncDispose]();
  }
}

/** Waits until TLS is done and the peer is known to be one of ours. */
async function secured(socket: TLSSocket, name: string, keys: InstallationKeys): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  const failed = (error: Error) => {
    // What the runtimes say of another certificate, which each of them words in its own way.
    const why = /certificate|unknown ?issuer/i.test(error.message)
      ? "it has other keys than this host"
      : undefined;
    const reason = why === undefined ? error.message : `${why} (${error.message})`;
    reject(peerFailed(`Cannot connect to peer ${name}: ${reason}`, error));
  };
  const closed = () => failed(new Error("the connection was closed"));
  socket.once("error", failed).once("close", closed).once("secureConnect", resolve);
  try {
    await promise;
    checkPeer(socket, keys);
    socket.setNoDelay(true);
  } finally {
    socket.off("close", closed);
    // The error listener stays for what comes until somebody else listens.
  }
}

function checkHash(hash: string): void {
  if (!SHA256.test(hash))
    throw new FlurryError("BAD_ARGUMENT", `${JSON.stringify(hash)} is no SHA-256 in hex`);
}
