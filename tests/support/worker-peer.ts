import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { connect, createServer, type Server, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { encodeData, encodeMessage, FrameReader } from "../../guest-agent/protocol/codec.ts";
import { MARKER } from "../../guest-agent/protocol/constants.ts";
import { type WorkerType, workerTypes } from "../../guest-agent/protocol/worker/constants.ts";
import { type HostMessage, parseHostMessage } from "../../guest-agent/protocol/worker/host-messages.ts";
import { WorkerClient, type WorkerClientOptions } from "../../guest-agent/protocol/worker/mod.ts";

type Of<T extends HostMessage["type"]> = Extract<HostMessage, { type: T }>;

/** A worker host that says whatever the test wants, with the real client at the other end of a socket. */
export class ScriptedWorkerHost implements AsyncDisposable {
  readonly client: WorkerClient;
  readonly socket: Socket;
  /** Bytes that the client sent. */
  received = 0;
  readonly #server: Server;
  readonly #directory: string;
  readonly #messages: HostMessage[] = [];
  readonly #reader = new FrameReader();
  #arrived = Promise.withResolvers<void>();

  private constructor(server: Server, directory: string, socket: Socket, client: WorkerClient) {
    this.#server = server;
    this.#directory = directory;
    this.socket = socket;
    this.client = client;
    socket.on("error", () => undefined);
    socket.on("data", (chunk: Buffer) => {
      this.received += chunk.length;
      this.#reader.push(chunk, (payload) => {
        const message = parseHostMessage(payload);
        this.#messages.push(message.type === "DATA" ? { ...message, data: message.data.slice() } : message);
      });
      this.#arrived.resolve();
    });
  }

  static async start(options: WorkerClientOptions = {}): Promise<ScriptedWorkerHost> {
    const directory = mkdtempSync(join(tmpdir(), "flurry-worker-peer-"));
    const server = createServer();
    await once(server.listen(join(directory, "s")), "listening");
    const connected = once(server, "connection");
    const client = WorkerClient.over(connect(join(directory, "s")), options);
    const [socket] = (await connected) as [Socket];
    return new ScriptedWorkerHost(server, directory, socket, client);
  }

  /** The next message of the host, which must be of this type. */
  async expect<T extends HostMessage["type"]>(type: T): Promise<Of<T>> {
    while (this.#messages.length === 0) {
      await this.#arrived.promise;
      this.#arrived = Promise.withResolvers<void>();
    }
    const message = this.#messages.shift()!;
    if (message.type !== type) throw new Error(`Expected ${type}, got ${JSON.stringify(message)}`);
    return message as Of<T>;
  }

  /** Whether nothing has come that nobody expected. */
  get isIdle(): boolean {
    return this.#messages.length === 0;
  }

  greet(): void {
    this.socket.write(MARKER);
  }

  send(type: WorkerType, id: number, fields?: Record<string, unknown>): void {
    this.socket.write(encodeMessage(workerTypes[type], id, fields));
  }

  data(id: number, bytes: Uint8Array): void {
    this.socket.write(encodeData(id, 1, bytes));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.client[Symbol.asyncDispose]();
    this.socket.destroy();
    await new Promise((resolve) => this.#server.close(resolve));
    rmSync(this.#directory, { recursive: true, force: true });
  }
}
