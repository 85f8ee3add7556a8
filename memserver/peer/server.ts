import { once } from "node:events";
import type { AddressInfo, Socket } from "node:net";
import { createServer, type Server, type TLSSocket } from "node:tls";
import { throwIfAborted } from "../waiting.ts";
import { peerFailed } from "./frames.ts";
import type { InstallationKeys } from "./keys.ts";
import { ServedConnection, type ServedConnectionOptions, type ServedStats } from "./served-connection.ts";
import { checkPeer, serverTls } from "./tls.ts";

export interface PageServerOptions extends ServedConnectionOptions {
  /** Address to listen on. */
  host: string;
  /** 0 for any that is free. */
  port: number;
  keys: InstallationKeys;
  /** Connections at a time; more are closed at once. @default 64 */
  maxConnections?: number | undefined;
  /** Milliseconds for a connection to have done TLS. @default 10_000 */
  handshakeMs?: number | undefined;
}

/**
 * Gives pages of this host's memory images to the memservers of other hosts: to those that have the
 * installation's key.
 */
export class PageServer implements AsyncDisposable {
  readonly stats: Readonly<ServedStats>;
  readonly #server: Server;
  readonly #options: PageServerOptions;
  readonly #stats: ServedStats = { requests: 0, pages: 0, compressedPages: 0, sentBytes: 0 };
  /** As they came, before TLS. */
  readonly #raw = new Set<Socket>();
  readonly #connections = new Set<ServedConnection>();

  private constructor(options: PageServerOptions) {
    this.#options = options;
    this.stats = this.#stats;
    const { keys, maxConnections = 64, handshakeMs = 10_000 } = options;
    this.#server = createServer({ ...serverTls(keys), handshakeTimeout: handshakeMs });
    this.#server.maxConnections = maxConnections;
    this.#server.on("connection", (socket) => {
      this.#raw.add(socket);
      socket.once("close", () => this.#raw.delete(socket));
    });
    this.#server.on("tlsClientError", (error, socket) => {
      // Not closed by the runtimes when its time is over.
      socket.on("error", () => "it is closed for an error already");
      socket.destroy();
      options.onTrouble?.(peerFailed(`A connection was refused: ${error.message}`, error));
    });
    this.#server.on("secureConnection", (socket) => this.#serve(socket));
  }

  /** @throws the system's error, such as EADDRINUSE; FlurryError ABORTED */
  static async listen(options: PageServerOptions, signal?: AbortSignal): Promise<PageServer> {
    throwIfAborted(signal);
    const server = new PageServer(options);
    server.#server.listen(options.port, options.host);
    await once(server.#server, "listening");
    server.#server.on("error", (error) => options.onTrouble?.(error));
    return server;
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  /** Connections that are served now. */
  get connections(): number {
    return this.#connections.size;
  }

  #serve(socket: TLSSocket): void {
    try {
      checkPeer(socket, this.#options.keys);
    } catch (error) {
      socket.on("error", () => "it is closed for an error already");
      socket.destroy();
      this.#options.onTrouble?.(error);
      return;
    }
    socket.setNoDelay(true);
    const connection = new ServedConnection(socket, this.#options, this.#stats);
    this.#connections.add(connection);
    void connection.closed.then(() => this.#connections.delete(connection));
  }

  /** Stops listening, closes all connections at once and disposes of their images. */
  async [Symbol.asyncDispose](): Promise<void> {
    const closed = once(this.#server, "close");
    this.#server.close();
    for (const connection of this.#connections) connection.end();
    await Promise.all([...this.#connections].map((connection) => connection.closed));
    for (const socket of this.#raw) socket.destroy();
    await closed;
  }
}
