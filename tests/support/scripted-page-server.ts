import { once } from "node:events";
import {
  type AddressInfo,
  connect as connectPlain,
  createServer as createPlain,
  type Server,
} from "node:net";
import { Duplex } from "node:stream";
import { connect, createServer, type TLSSocket } from "node:tls";
import type { InstallationKeys } from "../../memserver/peer/keys.ts";
import {
  encodeAnswer,
  encodeHello,
  type PeerAnswer,
  type PeerRequest,
  requestReader,
} from "../../memserver/peer/messages.ts";
import { clientTls, serverTls } from "../../memserver/peer/tls.ts";
import type { MadeUpImage } from "./memserver-peers.ts";

/** What a scripted server says to a request: bytes, or nothing yet. */
export type ScriptedAnswer = (
  request: PeerRequest,
  say: (...parts: Uint8Array[]) => void,
) => void | Promise<void>;

/** A page server that has the key, and says whatever the test wants. */
export class ScriptedPageServer implements AsyncDisposable {
  readonly #server: Server;
  readonly #sockets = new Set<TLSSocket>();
  readonly requests: PeerRequest[] = [];

  private constructor(server: Server) {
    this.#server = server;
  }

  /** @param hello - what it says first */
  static async start(
    keys: InstallationKeys,
    answer: ScriptedAnswer,
    hello: Uint8Array = encodeHello(),
  ): Promise<ScriptedPageServer> {
    const server = createServer(serverTls(keys));
    const scripted = new ScriptedPageServer(server);
    server.on("secureConnection", (socket) => {
      scripted.#sockets.add(socket);
      socket.on("error", () => socket.destroy()).on("close", () => scripted.#sockets.delete(socket));
      const say = (...parts: Uint8Array[]) => {
        // Of no bytes, Deno's would end the connection.
        for (const part of parts) if (!socket.destroyed && part.length > 0) socket.write(part);
      };
      const reader = requestReader((request) => {
        scripted.requests.push(request);
        void answer(request, say);
      });
      socket.on("data", (chunk: Buffer) => reader.push(chunk));
      say(hello);
    });
    await once(server.listen(0, "127.0.0.1"), "listening");
    return scripted;
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  get address(): { host: string; port: number } {
    return { host: "127.0.0.1", port: this.port };
  }

  /** Connections that are open. */
  get connections(): number {
    return this.#sockets.size;
  }

  cut(): void {
    for (const socket of this.#sockets) socket.destroy();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const closed = once(this.#server, "close");
    this.#server.close();
    this.cut();
    await closed;
  }
}

/** What an honest server would answer, in one frame. */
export function honestAnswer(image: MadeUpImage, request: PeerRequest): PeerAnswer {
  const { id } = request;
  switch (request.kind) {
    case "find":
      return { kind: "found", id, hash: image.hash };
    case "open":
      return { kind: "opened", id, image: 1, pages: image.pages, descriptor: image.descriptor };
    case "table": {
      const entries = image.table.bytes.subarray(request.first * 16, (request.first + request.count) * 16);
      return { kind: "table", id, first: request.first, entries };
    }
    case "read": {
      const { first, count } = request;
      return { kind: "pages", id, first, count, encoding: "raw", bytes: image.range(first, count) };
    }
    default:
      return { kind: "none", id };
  }
}

/** Answers honestly but to READ. */
export function answeringReads(
  image: MadeUpImage,
  answer: (
    request: PeerRequest & { kind: "read" },
    say: (...parts: Uint8Array[]) => void,
  ) => void | Promise<void>,
): ScriptedAnswer {
  return (request, say) => {
    if (request.kind === "read") return answer(request, say);
    if (request.kind !== "close") say(encodeAnswer(honestAnswer(image, request)));
  };
}

/** A TCP server that does something else with connections. */
export async function plainServer(
  onSocket: (socket: Duplex) => void,
): Promise<AsyncDisposable & { port: number }> {
  const sockets = new Set<Duplex>();
  const server = createPlain((socket) => {
    sockets.add(socket);
    socket.on("error", () => socket.destroy());
    onSocket(socket);
  });
  await once(server.listen(0, "127.0.0.1"), "listening");
  return {
    port: (server.address() as AddressInfo).port,
    [Symbol.asyncDispose]: async () => {
      const closed = once(server, "close");
      server.close();
      for (const socket of sockets) socket.destroy();
      await closed;
    },
  };
}

/** Connects and says these bytes. Resolves with what came, when the connection is closed. */
export async function sayPlainly(port: number, bytes: Uint8Array): Promise<Buffer> {
  return await heard(connectPlain(port, "127.0.0.1"), bytes);
}

/** As `sayPlainly` over TLS, with the key and the trust of `keys`, or without a key. */
export async function saySecurely(
  port: number,
  bytes: Uint8Array,
  keys: InstallationKeys,
  withKey = true,
): Promise<Buffer> {
  const { key, cert, ...trust } = clientTls(keys);
  const shown = withKey ? { key, cert } : {};
  // Whom it trusts is of no interest here.
  const options = { host: "127.0.0.1", port, ...trust, ...shown, rejectUnauthorized: false };
  return await heard(connect(options as Parameters<typeof connect>[0]), bytes);
}

async function heard(socket: Duplex, bytes: Uint8Array): Promise<Buffer> {
  const { promise, resolve } = Promise.withResolvers<Buffer>();
  const chunks: Buffer[] = [];
  socket.on("data", (chunk: Buffer) => chunks.push(chunk));
  socket.on("error", () => socket.destroy());
  socket.on("close", () => resolve(Buffer.concat(chunks)));
  socket.write(bytes);
  return await promise;
}

/** Two ends of a connection in this process. What is written to one is held until the other takes it. */
export function duplexPair(): { near: HeldDuplex; far: HeldDuplex } {
  const near = new HeldDuplex();
  const far = new HeldDuplex();
  near.other = far;
  far.other = near;
  return { near, far };
}

export class HeldDuplex extends Duplex {
  other: HeldDuplex | undefined;
  /** While it holds, what is written here is not taken. */
  #hold = false;
  #taken: (() => void) | undefined;

  hold(): void {
    this.#hold = true;
  }

  release(): void {
    this.#hold = false;
    this.#taken?.();
  }

  override _write(chunk: Buffer, _encoding: string, done: (error?: Error | null) => void): void {
    const take = () => {
      this.#taken = undefined;
      this.other?.push(chunk);
      done();
    };
    if (this.#hold) this.#taken = take;
    else setImmediate(take);
  }

  override _read(): void {
    // What is pushed is taken.
  }

  override _destroy(error: Error | null, done: (error?: Error | null) => void): void {
    done(error);
    const { other } = this;
    this.other = undefined;
    if (other && !other.destroyed) setImmediate(() => other.destroy());
  }
}
