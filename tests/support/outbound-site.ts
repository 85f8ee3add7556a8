import { createHash } from "node:crypto";
import http from "node:http";
import https from "node:https";
import type { AddressInfo, Socket } from "node:net";
import { brotliCompressSync, deflateSync, gzipSync, zstdCompressSync } from "node:zlib";
import { testCertificate, testKey } from "./gateway-certificate.ts";

type Handler = (request: http.IncomingMessage, response: http.ServerResponse, url: URL) => void;

const TEXT = "the same text ".repeat(2000);

/** What others' servers do, on loopback. */
export class OutboundSite implements AsyncDisposable {
  /** Bytes of `/give` that the server got rid of. */
  given = 0;
  /** Requests under way, and the most there were. */
  running = 0;
  most = 0;
  /** Requests whose connection went before their answer was complete. */
  broken = 0;
  requests = 0;
  readonly #server: http.Server | https.Server;
  readonly #sockets = new Set<Socket>();
  readonly #handlers: Readonly<Record<string, Handler>>;

  private constructor(secure: boolean) {
    this.#handlers = this.#make();
    const listener: http.RequestListener = (request, response) => this.#take(request, response);
    this.#server = secure
      ? https.createServer({ key: testKey, cert: testCertificate }, listener)
      : http.createServer(listener);
    this.#server.on("connection", (socket) => {
      this.#sockets.add(socket);
      socket.on("close", () => this.#sockets.delete(socket));
    });
  }

  static async open(options: { secure?: boolean } = {}): Promise<OutboundSite> {
    const site = new OutboundSite(options.secure ?? false);
    const { promise, resolve } = Promise.withResolvers<void>();
    site.#server.listen(0, "127.0.0.1", resolve);
    await promise;
    return site;
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  get host(): string {
    return `127.0.0.1:${this.port}`;
  }

  /** Connections that are open. */
  get connections(): number {
    return this.#sockets.size;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#server.close(() => resolve());
    this.#server.closeAllConnections();
    for (const socket of this.#sockets) socket.destroy();
    await promise;
  }

  #take(request: http.IncomingMessage, response: http.ServerResponse): void {
    const url = new URL(request.url ?? "/", "http://site");
    this.requests++;
    this.running++;
    this.most = Math.max(this.most, this.running);
    response.on("close", () => {
      this.running--;
      if (!response.writableFinished) this.broken++;
    });
    // What is not read hides that the connection has gone.
    if (url.pathname !== "/echo") request.resume();
    const handler = this.#handlers[url.pathname];
    if (handler) handler(request, response, url);
    else response.writeHead(404).end("nothing here");
  }

  #make(): Record<string, Handler> {
    const encoded = (encoding: string, bytes: Buffer): Handler => {
      return (_request, response) => {
        response.writeHead(200, { "content-encoding": encoding, "content-length": bytes.length });
        response.end(bytes);
      };
    };
    return {
      "/echo": echo,
      "/gzip": encoded("gzip", gzipSync(TEXT)),
      "/br": encoded("br", brotliCompressSync(TEXT)),
      "/zstd": encoded("zstd", zstdCompressSync(TEXT)),
      "/deflate": encoded("deflate", deflateSync(TEXT)),
      "/both": encoded("gzip, br", brotliCompressSync(gzipSync(TEXT))),
      "/unknown": encoded("secret", Buffer.from("cipher")),
      "/plain-lie": encoded("gzip", Buffer.from("this is no gzip")),
      "/status": (_request, response, url) =>
        response.writeHead(Number(url.searchParams.get("code")), "As Asked", { "x-kind": "status" }).end(),
      "/cookies": (_request, response) =>
        response.writeHead(200, ["Set-Cookie", "a=1", "X-Caf", "caf\u00e9", "Set-Cookie", "b=2"]).end("c"),
      "/to": (request, response, url) => {
        const code = Number(url.searchParams.get("code") ?? 302);
        const move = () =>
          response.writeHead(code, { location: url.searchParams.get("at") ?? "" }).end("moved");
        if (url.searchParams.has("read")) request.on("end", move);
        else move();
      },
      "/loop": (_request, response, url) =>
        response.writeHead(302, { location: `/loop?n=${Number(url.searchParams.get("n")) + 1}` }).end(),
      "/slow": (_request, response, url) => {
        setTimeout(() => response.end("slow"), Number(url.searchParams.get("ms") ?? 20));
      },
      "/hang": () => undefined,
      "/head-then-hang": (_request, response) => response.writeHead(200).write("begun"),
      "/cut": (_request, response) => {
        response.writeHead(200, { "content-length": 100 }).write("half");
        setTimeout(() => response.socket?.destroy(), 20);
      },
      "/give": (_request, response, url) => this.#give(response, Number(url.searchParams.get("bytes"))),
      "/early": (_request, response) => response.end("not needed"),
    };
  }

  async #give(response: http.ServerResponse, bytes: number): Promise<void> {
    this.given = 0;
    const chunk = Buffer.alloc(65_536, "x");
    while (this.given < bytes && !response.destroyed) {
      const part = chunk.subarray(0, Math.min(chunk.length, bytes - this.given));
      this.given += part.length;
      if (response.write(part)) continue;
      const { promise, resolve } = Promise.withResolvers<void>();
      response.once("drain", resolve);
      response.once("close", resolve);
      await promise;
      response.off("drain", resolve);
      response.off("close", resolve);
    }
    response.end();
  }
}

/** Tells what came. */
function echo(request: http.IncomingMessage, response: http.ServerResponse): void {
  const hash = createHash("sha256");
  const parts: Buffer[] = [];
  let bytes = 0;
  request.on("data", (part: Buffer) => {
    hash.update(part);
    bytes += part.length;
    if (bytes <= 10_000) parts.push(part);
  });
  request.on("end", () => {
    const { method, headers, url } = request;
    const text = bytes <= 10_000 ? Buffer.concat(parts).toString() : undefined;
    response.setHeader("content-type", "application/json");
    response.end(JSON.stringify({ method, url, headers, bytes, text, hash: hash.digest("hex") }));
  });
}
