import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { connect, createServer, type Server, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { unpack } from "msgpackr";
import { encodeMessage } from "../../guest-agent/protocol/codec.ts";
import { MARKER, messageTypes } from "../../guest-agent/protocol/constants.ts";
import { AgentClient, type AgentClientOptions } from "../../guest-agent/protocol/mod.ts";

/** What a host sent: the type's number, the id, the fields. */
export type HostMessage = [type: number, id: number, fields?: Record<string, unknown>];

/** A guest that says whatever the test wants, with the real client at the other end of a socket. */
export class ScriptedGuest implements AsyncDisposable {
  readonly client: AgentClient;
  readonly socket: Socket;
  readonly #server: Server;
  readonly #directory: string;
  readonly #messages: HostMessage[] = [];
  #bytes = Buffer.alloc(0);
  #arrived = Promise.withResolvers<void>();

  private constructor(server: Server, directory: string, socket: Socket, client: AgentClient) {
    this.#server = server;
    this.#directory = directory;
    this.socket = socket;
    this.client = client;
    socket.on("error", () => undefined);
    socket.on("data", (chunk: Buffer) => this.#receive(chunk));
  }

  static async start(options: AgentClientOptions = {}): Promise<ScriptedGuest> {
    const directory = mkdtempSync(join(tmpdir(), "flurry-peer-"));
    const server = createServer();
    await once(server.listen(join(directory, "s")), "listening");
    const connected = once(server, "connection");
    const client = AgentClient.over(connect(join(directory, "s")), options);
    const [socket] = (await connected) as [Socket];
    return new ScriptedGuest(server, directory, socket, client);
  }

  /** The next message of the host. */
  async next(): Promise<HostMessage> {
    while (this.#messages.length === 0) {
      await this.#arrived.promise;
      this.#arrived = Promise.withResolvers<void>();
    }
    return this.#messages.shift()!;
  }

  /** The next message, which must be of this type. */
  async expect(type: keyof typeof messageTypes): Promise<{ id: number; fields: Record<string, unknown> }> {
    const [number, id, fields = {}] = await this.next();
    if (number !== messageTypes[type])
      throw new Error(`Expected ${type}, got ${number} ${JSON.stringify(fields)}`);
    return { id, fields };
  }

  greet(): void {
    this.socket.write(MARKER);
  }

  send(type: keyof typeof messageTypes, id: number, fields?: Record<string, unknown>): void {
    this.socket.write(encodeMessage(messageTypes[type], id, fields));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.client[Symbol.asyncDispose]();
    this.socket.destroy();
    await new Promise((resolve) => this.#server.close(resolve));
    rmSync(this.#directory, { recursive: true, force: true });
  }

  #receive(chunk: Buffer): void {
    this.#bytes = Buffer.concat([this.#bytes, chunk]);
    for (;;) {
      if (this.#bytes.length >= 8 && this.#bytes.subarray(0, 8).equals(MARKER))
        this.#bytes = this.#bytes.subarray(8);
      if (this.#bytes.length < 4) break;
      const end = 4 + this.#bytes.readUInt32BE(0);
      if (this.#bytes.length < end) break;
      this.#messages.push(unpack(this.#bytes.subarray(4, end)) as HostMessage);
      this.#bytes = this.#bytes.subarray(end);
    }
    this.#arrived.resolve();
  }
}

/** The error that a promise rejects with; fails if it does not. */
export async function rejection(
  promise: Promise<unknown>,
): Promise<Error & { code?: string; errno?: string; remote?: string }> {
  try {
    await promise;
  } catch (error) {
    if (error instanceof Error) return error;
    throw error;
  }
  throw new Error("The promise resolved");
}
