import { once } from "node:events";
import { createServer, type Server, type Socket } from "node:net";
import { join } from "node:path";
import { PAGE_BYTES, type RamBlock, type StreamItem, section } from "../../memserver/stream/format.ts";
import { StreamReader } from "../../memserver/stream/reader.ts";
import { encodeReturnMessage, type ReturnMessage } from "../../memserver/stream/return-path.ts";
import { type TemporaryDirectory, temporaryDirectory } from "./vm.ts";

/** A page as it came. */
export interface ArrivedPage {
  connection: "main" | "urgent";
  block: string;
  page: number;
  zero: boolean;
  /** A copy. */
  data: Buffer;
}

/** What came over the main connection beside pages. */
export type ArrivedItem = Exclude<StreamItem, { kind: "page" | "zero" }>;

export interface ScriptedQemuOptions {
  /** It has lost its memserver, and waits for another one. @default false */
  recovers?: boolean | undefined;
  /** Has its CPUs run as soon as it has its state; else `run` does. @default true */
  runs?: boolean | undefined;
}

const SECTION_ID = 1;

/**
 * A QEMU that waits for a memserver and says and reads whatever a test wants: it has the unix socket of a
 * child, takes the main connection and the second one, and reads both strictly.
 */
export class ScriptedQemu implements AsyncDisposable {
  readonly path: string;
  /** Pages of both connections, in the order in which they were read. */
  readonly pages: ArrivedPage[] = [];
  /** All else, likewise. */
  readonly items: ArrivedItem[] = [];
  readonly #blocks: readonly RamBlock[];
  readonly #server: Server;
  readonly #directory: TemporaryDirectory;
  readonly #sockets = new Set<Socket>();
  readonly #recovers: boolean;
  readonly #runs: boolean;
  #main: Socket | undefined;
  #urgent: Socket | undefined;
  #failure: unknown;
  #changed = Promise.withResolvers<void>();

  private constructor(
    blocks: readonly RamBlock[],
    { recovers = false, runs = true }: ScriptedQemuOptions,
    server: Server,
    directory: TemporaryDirectory,
  ) {
    this.#blocks = blocks;
    this.#recovers = recovers;
    this.#runs = runs;
    this.#server = server;
    this.#directory = directory;
    this.path = join(directory.path, "m");
    server.on("connection", (socket) => this.#accept(socket));
  }

  /** @param blocks - all that it has: pages of others than the first one are taken too, as QEMU does */
  static async listen(blocks: readonly RamBlock[], options: ScriptedQemuOptions = {}): Promise<ScriptedQemu> {
    const directory = temporaryDirectory();
    const server = createServer();
    const qemu = new ScriptedQemu(blocks, options, server, directory);
    await once(server.listen(qemu.path), "listening");
    return qemu;
  }

  /** The connection that came first; there must be one. */
  get main(): Socket {
    if (!this.#main) throw new Error("Nobody has connected");
    return this.#main;
  }

  /** The one that came second. */
  get urgent(): Socket {
    if (!this.#urgent) throw new Error("There is no second connection");
    return this.#urgent;
  }

  /** Whether the memserver has let go of it: of all connections that there were. */
  get left(): boolean {
    const gone = (socket: Socket) => socket.readableEnded || socket.destroyed;
    return this.#sockets.size > 0 && [...this.#sockets].every(gone);
  }

  /** Connections so far. */
  get connections(): number {
    return this.#sockets.size;
  }

  /** Kinds of what has come beside pages. */
  get kinds(): ArrivedItem["kind"][] {
    return this.items.map(({ kind }) => kind);
  }

  /** Whether all has come that will. */
  get ended(): boolean {
    return this.items.at(-1)?.kind === "eof";
  }

  /** Numbers of the pages of a block that have come. */
  pagesOf(block: string): number[] {
    return this.pages.filter((page) => page.block === block).map(({ page }) => page);
  }

  /** Waits for something that comes over the connections. */
  async until(condition: () => boolean): Promise<void> {
    for (;;) {
      if (this.#failure) throw this.#failure;
      if (condition()) return;
      await this.#changed.promise;
    }
  }

  /** Says something on the return path. */
  say(...messages: ReturnMessage[]): void {
    this.main.write(Buffer.concat(messages.map(encodeReturnMessage)));
  }

  /** Says that the guest waits for a page. */
  request(page: number, block = this.#blocks[0]!.name): void {
    this.say(requestOf(page, block));
  }

  /** Has its CPUs run: it has come to the ping at the end of its state. */
  run(): void {
    const packaged = this.items.flatMap((item) => (item.kind === "package" ? item.items : []));
    for (const item of packaged)
      if (item.kind === "ping") this.say({ kind: "pong", at: 0, value: item.value });
  }

  [Symbol.asyncDispose](): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    return new Promise((resolve) =>
      this.#server.close(() => {
        this.#directory[Symbol.dispose]();
        resolve();
      }),
    );
  }

  #accept(socket: Socket): void {
    this.#sockets.add(socket);
    socket.on("error", () => socket.destroy());
    socket.on("close", () => this.#change());
    const read = this.#main ? this.#readUrgent() : this.#readMain();
    if (this.#main) this.#urgent = socket;
    else this.#main = socket;
    socket.on("data", (chunk: Buffer) => {
      try {
        read(chunk);
      } catch (error) {
        this.#failure ??= error;
      }
      this.#change();
    });
    this.#change();
  }

  #readMain(): (chunk: Buffer) => void {
    let body = this.#recovers ? this.#recoveringReader("main") : undefined;
    if (body) return (chunk) => body?.push(chunk);
    const head = new StreamReader((item) => {
      this.#take("main", item);
      if (item.kind === "part") body = this.#openReader("main");
    });
    return (chunk) => {
      // Byte by byte, to end where the pages begin: that reader knows only the blocks that were listed.
      let at = 0;
      while (!body && at < chunk.length) head.push(chunk.subarray(at, ++at));
      if (at < chunk.length) body?.push(chunk.subarray(at));
    };
  }

  #readUrgent(): (chunk: Buffer) => void {
    const reader = this.#openReader("urgent");
    return (chunk) => reader.push(chunk);
  }

  /** A reader in the middle of the RAM section, which knows all blocks. */
  #openReader(connection: ArrivedPage["connection"]): StreamReader {
    let opened = false;
    const reader = this.#recoveringReader(connection, () => opened);
    reader.push(Uint8Array.of(section.part, 0, 0, 0, SECTION_ID));
    opened = true;
    return reader;
  }

  #recoveringReader(connection: ArrivedPage["connection"], isOpen = () => true): StreamReader {
    return new StreamReader(
      (item) => {
        if (isOpen()) this.#take(connection, item);
      },
      { recovers: { sectionId: SECTION_ID, blocks: this.#blocks } },
    );
  }

  #take(connection: ArrivedPage["connection"], item: StreamItem): void {
    if (item.kind !== "page" && item.kind !== "zero") {
      if (connection === "urgent") throw new Error(`There is "${item.kind}" on the second connection`);
      this.items.push(kept(item));
      if (item.kind === "package" && this.#runs) this.run();
      return;
    }
    const zero = item.kind === "zero";
    const data = zero ? Buffer.alloc(PAGE_BYTES) : Buffer.from(item.data);
    this.pages.push({ connection, block: item.block, page: item.offset / PAGE_BYTES, zero, data });
  }

  #change(): void {
    this.#changed.resolve();
    this.#changed = Promise.withResolvers();
  }
}

/** What QEMU says when its guest waits for a page. */
export function requestOf(page: number, block: string, pages = 1): ReturnMessage {
  const range = { start: page * PAGE_BYTES, length: pages * PAGE_BYTES };
  return { kind: "request", at: 0, block, named: true, ...range };
}

/** What QEMU says it has got, bit by bit. */
export function bitmapOf(block: RamBlock, pages: Iterable<number>): ReturnMessage {
  const bits = Buffer.alloc(Math.ceil(block.bytes / PAGE_BYTES / 64) * 8);
  for (const page of pages) bits[page >> 3]! |= 1 << (page & 7);
  return { kind: "recv-bitmap", at: 0, block: block.name, bits };
}

/** A copy of what is valid during a call only. */
function kept(item: ArrivedItem): ArrivedItem {
  if (item.kind === "description") return { ...item, bytes: Buffer.from(item.bytes) };
  if (item.kind !== "package") return item;
  const items = item.items.map((each) =>
    each.kind === "devices" ? { ...each, bytes: Buffer.from(each.bytes) } : each,
  );
  return { ...item, items };
}
