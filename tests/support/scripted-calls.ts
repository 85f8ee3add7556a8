import { once } from "node:events";
import { createServer, type Server, type Socket } from "node:net";

/** A request of a program, and which of its connection it is, from 1 on. */
export interface ScriptedRequest {
  line: string;
  body: Buffer;
  connection: number;
}

/** What is sent, piece by piece. Undefined: no answer at all. */
export type ScriptedAnswer = readonly (string | Uint8Array | symbol)[] | undefined;
/** Ends the host's direction, as the agent does when the host has ended a call. */
export const END = Symbol("end");
/** Closes the connection, whatever the program is saying. */
export const CUT = Symbol("cut");

interface Script {
  answer(request: ScriptedRequest): ScriptedAnswer | Promise<ScriptedAnswer>;
  /** Sent to whoever connects, before anything was asked. */
  greeting?: ScriptedAnswer;
  /** Takes no bodies: what comes behind a line is left unread. */
  readsNoBodies?: boolean;
}

/** Plays the host to programs that fork their VM: guest-agent/protocol/CALLS.md. */
export class ScriptedCalls implements AsyncDisposable {
  readonly requests: ScriptedRequest[] = [];
  connections = 0;
  #news = Promise.withResolvers<void>();
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();

  private constructor(server: Server) {
    this.#server = server;
  }

  static async listen(path: string, script: Script): Promise<ScriptedCalls> {
    const server = createServer({ allowHalfOpen: true });
    const calls = new ScriptedCalls(server);
    server.on("connection", (socket) => calls.#serve(socket, script));
    server.listen(path);
    await once(server, "listening");
    return calls;
  }

  /** Waits until that many requests have come. */
  async heard(count: number): Promise<void> {
    while (this.requests.length < count) {
      await this.#news.promise;
      this.#news = Promise.withResolvers<void>();
    }
  }

  /** Ends all connections that there are. */
  hangUp(): void {
    for (const socket of this.#sockets) socket.destroy();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.hangUp();
    this.#server.close();
    await once(this.#server, "close");
  }

  #serve(socket: Socket, script: Script): void {
    this.connections += 1;
    const connection = this.connections;
    let unread: Buffer = Buffer.alloc(0);
    /** Takes the next request, if all of it has come. */
    const take = (): ScriptedRequest | undefined => {
      const end = unread.indexOf("\n");
      if (end < 0) return undefined;
      const line = unread.toString("latin1", 0, end);
      const length = script.readsNoBodies ? 0 : Number(/^exit \d+ (\d+)$/.exec(line)?.[1] ?? 0);
      if (unread.length < end + 1 + length) return undefined;
      const body = unread.subarray(end + 1, end + 1 + length);
      unread = unread.subarray(end + 1 + length);
      return { line, body, connection };
    };
    this.#sockets.add(socket);
    socket.once("close", () => this.#sockets.delete(socket));
    // Programs of these tests may end whenever they like.
    socket.on("error", () => socket.destroy());
    socket.on("end", () => socket.end());
    let turn = send(socket, script.greeting);
    socket.on("data", (chunk: Buffer) => {
      unread = Buffer.concat([unread, chunk]);
      turn = turn.then(async () => {
        for (let request = take(); request && socket.writable; request = take()) {
          this.requests.push(request);
          this.#news.resolve();
          await send(socket, await script.answer(request));
        }
      });
    });
  }
}

async function send(socket: Socket, answer: ScriptedAnswer): Promise<void> {
  for (const piece of answer ?? []) {
    if (piece === END) socket.end();
    if (piece === CUT) socket.destroy();
    if (typeof piece === "symbol" || !socket.writable) return;
    await new Promise<void>((resolve) => void socket.write(piece, () => resolve()));
    // So that the reader may see it alone.
    await new Promise<void>((resolve) => setImmediate(resolve));
  }
}
