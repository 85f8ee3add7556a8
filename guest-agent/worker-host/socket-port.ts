import { once } from "node:events";
import { createServer, type Server, type Socket } from "node:net";
import type { Port, PortEvents } from "./port.ts";

/** A port on a unix socket, for tests and for running without a VM: each connection is a new host. */
export class SocketPort implements Port {
  readonly #server: Server;
  #socket: Socket | undefined;
  #drained: PromiseWithResolvers<void> | undefined;

  private constructor(server: Server) {
    this.#server = server;
  }

  static async listen(path: string): Promise<SocketPort> {
    const server = createServer();
    server.listen(path);
    await once(server, "listening");
    return new SocketPort(server);
  }

  start(events: PortEvents): void {
    this.#server.on("connection", (socket) => {
      this.#drop(this.#socket, events);
      this.#socket = socket;
      socket.on("data", (chunk: Uint8Array) => {
        if (this.#socket !== socket) return;
        const wait = events.onBytes(chunk);
        if (wait === undefined) return;
        socket.pause();
        wait.then(() => socket.resume());
      });
      socket.on("drain", () => this.#drain());
      socket.on("error", () => this.#drop(socket, events)); // a host that went is no error of ours
      socket.on("close", () => this.#drop(socket, events));
    });
  }

  write(bytes: Uint8Array): Promise<void> | undefined {
    if (this.#socket === undefined || this.#socket.write(bytes)) return undefined;
    this.#drained ??= Promise.withResolvers<void>();
    return this.#drained.promise;
  }

  forget(): void {
    // What waits goes with its socket. On the same one it comes before the marker, and is skipped.
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#socket?.destroy();
    await new Promise((resolve) => this.#server.close(resolve));
  }

  #drop(socket: Socket | undefined, events: PortEvents): void {
    if (socket === undefined || socket !== this.#socket) return;
    this.#socket = undefined;
    socket.destroy();
    this.#drain();
    events.onHangup();
  }

  #drain(): void {
    this.#drained?.resolve();
    this.#drained = undefined;
  }
}
