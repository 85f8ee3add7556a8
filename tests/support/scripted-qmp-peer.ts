import { Buffer } from "node:buffer";
import { once } from "node:events";
import { createConnection } from "node:net";
import { isDeepStrictEqual } from "node:util";
import type { QmpTransport, TransportSink } from "../../qmp/mod.ts";

/** A command as the peer received it. */
export interface ReceivedCommand {
  execute?: string;
  "exec-oob"?: string;
  arguments?: unknown;
  id: number;
}

interface Link {
  write(data: string | Uint8Array): void;
  /** Ends the connection the way a dead QEMU does. */
  drop(error?: Error): void;
  /** Ends the stream in an orderly way. */
  end(): void;
}

/**
 * Plays QEMU's side of a monitor by a script: every command must come exactly when and as the script
 * says. Either in memory, where each send() is one chunk, or over a socket that it dials like
 * `-qmp unix:PATH`.
 */
export class ScriptedQmpPeer implements Disposable {
  /** Every command so far, in order. */
  readonly received: ReceivedCommand[] = [];
  /** Settles when the client has dropped the connection. */
  readonly dropped: Promise<void>;

  #link: Link;
  #text = "";
  #taken = 0;
  #waiting: PromiseWithResolvers<void> | undefined;
  #markDropped: () => void;

  private constructor(link: Link) {
    this.#link = link;
    const dropped = Promise.withResolvers<void>();
    this.dropped = dropped.promise;
    this.#markDropped = dropped.resolve;
  }

  /** A peer and the transport that leads to it. */
  static inMemory(): { peer: ScriptedQmpPeer; transport: QmpTransport } {
    let sink: TransportSink | undefined;
    let over = false;
    const end = (error: Error | undefined): void => {
      if (over) return;
      over = true;
      sink?.closed(error);
    };
    const peer = new ScriptedQmpPeer({
      write: (data) => {
        if (!over) sink?.data(typeof data === "string" ? Buffer.from(data) : data);
      },
      drop: end,
      end: () => end(undefined),
    });
    const transport: QmpTransport = {
      start: (to) => {
        sink = to;
      },
      write: (text) => {
        if (!over) peer.#receive(text);
      },
      close: () => {
        peer.#lost();
        end(undefined);
      },
    };
    return { peer, transport };
  }

  /** Connects to a listener, as QEMU does to the path of `-qmp unix:PATH`. */
  static async dial(path: string): Promise<ScriptedQmpPeer> {
    const socket = createConnection({ path, allowHalfOpen: true });
    await once(socket, "connect");
    const peer = new ScriptedQmpPeer({
      write: (data) => void socket.write(data),
      drop: () => void socket.destroy(),
      end: () => void socket.end(),
    });
    socket.setEncoding("utf8");
    socket.on("data", (text) => peer.#receive(String(text)));
    // Writing to a client that is gone is what some scripts do on purpose.
    socket.on("error", () => peer.#lost());
    socket.on("end", () => {
      peer.#lost();
      socket.end();
    });
    socket.on("close", () => peer.#lost());
    return peer;
  }

  /** Greets and answers the negotiation; call it before or while the client connects. */
  async handshake(capabilities: readonly string[] = ["oob"]): Promise<void> {
    this.greet(capabilities);
    const args = capabilities.includes("oob") ? { enable: ["oob"] } : undefined;
    this.reply(await this.expect("qmp_capabilities", args));
  }

  greet(capabilities: readonly string[] = ["oob"]): void {
    const version = { qemu: { major: 10, minor: 0, micro: 2 }, package: "scripted" };
    this.send(`${JSON.stringify({ QMP: { version, capabilities } })}\r\n`);
  }

  /**
   * Takes the next command, which must be this one with these arguments.
   *
   * @returns Its id, for the answer.
   * @throws Error when another command came, or the client went.
   */
  async expect(command: string, args?: unknown, verb: "execute" | "exec-oob" = "execute"): Promise<number> {
    while (this.received.length <= this.#taken) {
      this.#waiting ??= Promise.withResolvers();
      await this.#waiting.promise;
    }
    const got = this.received[this.#taken++]!;
    const want = { [verb]: command, ...(args === undefined ? {} : { arguments: args }), id: got.id };
    if (!isDeepStrictEqual(got, want)) {
      throw new Error(`Script wants ${JSON.stringify(want)}, client sent ${JSON.stringify(got)}`);
    }
    return got.id;
  }

  reply(id: unknown, value: unknown = {}): void {
    this.send(`${JSON.stringify({ return: value, id })}\r\n`);
  }

  fail(id: unknown, qmpClass: string, desc: string): void {
    this.send(`${JSON.stringify({ id, error: { class: qmpClass, desc } })}\r\n`);
  }

  event(name: string, data?: unknown): void {
    this.send(`${eventLine(name, data)}\r\n`);
  }

  /** Sends text or bytes as they are. */
  send(data: string | Uint8Array): void {
    this.#link.write(data);
  }

  /** Goes away without a word, as a killed QEMU does. */
  drop(error?: Error): void {
    this.#link.drop(error);
  }

  /** Says that nothing follows, but keeps listening. */
  end(): void {
    this.#link.end();
  }

  [Symbol.dispose](): void {
    this.drop();
  }

  #receive(text: string): void {
    this.#text += text;
    const lines = this.#text.split("\n");
    this.#text = lines.pop() ?? "";
    for (const line of lines) this.received.push(JSON.parse(line) as ReceivedCommand);
    this.#waiting?.resolve();
    this.#waiting = undefined;
  }

  #lost(): void {
    this.#markDropped();
    this.#waiting?.reject(new Error("The client dropped the connection before the script was over"));
    this.#waiting = undefined;
  }
}

/** An event as QEMU writes it, without the line's end. */
export function eventLine(name: string, data?: unknown): string {
  return JSON.stringify({ timestamp: { seconds: 1, microseconds: 2 }, event: name, data });
}
