import { chmodSync, rmSync } from "node:fs";
import { createServer, type Server, type Socket } from "node:net";

/**
 * Listens on a unix socket for exactly one connection. QEMU connects out to its host, rather than
 * the other way round: so its being there is an event, and nothing has to poll for a socket file.
 */
export class SocketListener implements AsyncDisposable {
  /** The connection. Pending until QEMU connects; rejects never (a QEMU that dies is noticed by its exit). */
  readonly connection: Promise<Socket>;
  readonly #server: Server;
  readonly #path: string;
  #accepted: Socket | undefined;

  private constructor(server: Server, path: string) {
    this.#server = server;
    this.#path = path;
    this.connection = new Promise((resolve) => {
      server.once("connection", (socket) => {
        this.#accepted = socket;
        socket.pause();
        resolve(socket);
      });
    });
  }

  static async open(path: string): Promise<SocketListener> {
    const server = createServer({ pauseOnConnect: true });
    const listener = new SocketListener(server, path);
    await new Promise<void>((resolve, reject) => {
      server.once("error", reject);
      server.listen(path, resolve);
    });
    // QEMU may run as another user; the directory around the socket keeps all others out.
    chmodSync(path, 0o666);
    return listener;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#accepted?.destroy();
    this.#server.close();
    rmSync(this.#path, { force: true });
  }
}
