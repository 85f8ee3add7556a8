import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "bun:test";
import { createHash } from "node:crypto";
import { once } from "node:events";
import { join } from "node:path";
import { connect as connectTls } from "node:tls";
import type { Holder } from "../../memserver/image/holders.ts";
import { RemoteImage, type RemoteImageOptions } from "../../memserver/image/remote-image.ts";
import { SparseImage } from "../../memserver/image/sparse-image.ts";
import { type InstallationKeys, installationKeys } from "../../memserver/peer/keys.ts";
import {
  answerReader,
  encodeAnswer,
  encodeHello,
  encodeRequest,
  type PeerAnswer,
} from "../../memserver/peer/messages.ts";
import { PeerPool } from "../../memserver/peer/pool.ts";
import { ServedConnection, type ServedConnectionOptions } from "../../memserver/peer/served-connection.ts";
import { PageServer, type PageServerOptions } from "../../memserver/peer/server.ts";
import { clientTls } from "../../memserver/peer/tls.ts";
import { PAGE_BYTES } from "../../memserver/stream/format.ts";
import { rejection } from "../support/agent-peer.ts";
import { KEY, madeUpImage } from "../support/memserver-peers.ts";
import { answeringReads, duplexPair, ScriptedPageServer } from "../support/scripted-page-server.ts";
import { canMount, Script, smallTmpfs, type TemporaryDirectory, temporaryDirectory } from "../support/vm.ts";

const HOST = "127.0.0.1";
const MIB = 1024 * 1024;
/** 32 MiB. */
const image = madeUpImage(8192);
/** Where a small one will do. */
const small = madeUpImage(512, 7);
const SERVES_PAGES = join(import.meta.dirname, "../support/serves-pages.ts");

let home: TemporaryDirectory;
let keys: InstallationKeys;
let directory: TemporaryDirectory;

beforeAll(async () => {
  home = temporaryDirectory();
  keys = await installationKeys(join(home.path, "keys"));
});
afterAll(() => home[Symbol.dispose]());
beforeEach(() => {
  directory = temporaryDirectory();
});
afterEach(() => directory[Symbol.dispose]());

async function serve(options: Partial<PageServerOptions> = {}): Promise<PageServer> {
  return await PageServer.listen({ host: HOST, port: 0, keys, provider: image.provider, ...options });
}

function addressOf({ port }: { port: number }) {
  return { host: HOST, port };
}

function remote(
  of: typeof image,
  holders: readonly Holder[],
  options: Partial<RemoteImageOptions> = {},
): RemoteImage {
  const local = SparseImage.open(join(directory.path, "memory"), of.pages);
  return new RemoteImage({ name: "abc", table: of.table, local, holders, ...options });
}

function sha256(bytes: Uint8Array): string {
  return createHash("sha256").update(bytes).digest("hex");
}

function expectWhole(remoteImage: RemoteImage, of: typeof image): void {
  const bytes = Buffer.alloc(of.bytes.length, 0xaa);
  expect(remoteImage.read(0, of.pages, bytes, 0)).toBe(true);
  expect(sha256(bytes)).toBe(sha256(of.bytes));
}

async function turns(condition: () => boolean): Promise<void> {
  while (!condition()) await new Promise((resolve) => setImmediate(resolve));
}

describe("a memory image of another host", () => {
  test.each(["never", "auto", "always"] as const)("comes whole, compressed %s", async (compression) => {
    await using server = await serve({ compression });
    await using pool = new PeerPool({ keys });
    const hash = (await pool.find(addressOf(server), KEY))!;
    const details = (await pool.open(addressOf(server), hash))!;
    expect(details.table.root).toBe(image.table.root);
    expect(details.descriptor.equals(image.descriptor)).toBe(true);
    expect(details.workingSet).toBeUndefined();
    const before = pool.receivedBytes;
    await using remoteImage = remote(image, [pool.holder(addressOf(server), hash)], { table: details.table });
    await remoteImage.prefetch();
    expect(remoteImage.complete).toBe(true);
    expectWhole(remoteImage, image);
    expect(server.stats.pages).toBe(image.filled.length);
    expect(remoteImage.stats).toMatchObject({ badAnswers: 0, holderFailures: 0 });
    const bytes = pool.receivedBytes - before;
    if (compression === "never") expect(server.stats.compressedPages).toBe(0);
    // A third of what is not zero is text.
    if (compression === "always") expect(bytes).toBeLessThan(0.8 * image.filled.length * PAGE_BYTES);
  });

  test("has each page sent once to 16 readers, beside a prefetch", async () => {
    await using server = await serve();
    await using pool = new PeerPool({ keys });
    await using remoteImage = remote(image, [pool.holder(addressOf(server), image.hash)]);
    const readers = Array.from({ length: 16 }, async (_value, reader) => {
      const target = Buffer.alloc(4 * PAGE_BYTES);
      for (let step = 0; step < 200; step++) {
        const page = (step * 37 + reader) % (image.pages - 4);
        await remoteImage.fetch(page, 4, { urgent: step % 3 > 0 });
        expect(remoteImage.read(page, 4, target, 0)).toBe(true);
        const expected = image.bytes.subarray(page * PAGE_BYTES, (page + 4) * PAGE_BYTES);
        expect(target.equals(expected)).toBe(true);
      }
    });
    await Promise.all([...readers, remoteImage.prefetch()]);
    expectWhole(remoteImage, image);
    expect(server.stats.pages).toBe(image.filled.length);
    expect(remoteImage.stats.fetchedPages).toBe(image.filled.length);
  });

  test("is opened once on each of two connections, which all images share", async () => {
    let opened = 0;
    const provider = {
      ...small.provider,
      open: async () => {
        opened += 1;
        return small.served({
          [Symbol.asyncDispose]: async () => {
            opened -= 1;
          },
        });
      },
    };
    await using server = await serve({ provider });
    await using pool = new PeerPool({ keys });
    const holders = [1, 2, 3].map(() => pool.holder(addressOf(server), small.hash));
    await Promise.all(
      holders.flatMap((holder) => [
        holder.read(0, 9, { urgent: true }),
        holder.read(9, 9),
        holder.read(0, 1),
      ]),
    );
    expect([opened, server.connections]).toEqual([2, 2]);
    await holders[0]![Symbol.asyncDispose]();
    await holders[1]![Symbol.asyncDispose]();
    expect((await holders[2]!.read(0, 200))?.equals(small.range(0, 200))).toBe(true);
    await holders[2]![Symbol.asyncDispose]();
    await turns(() => opened === 0);
  });

  test("that the peer does not have is nobody's failure", async () => {
    await using server = await serve({ provider: small.provider });
    await using pool = new PeerPool({ keys });
    expect(await pool.open(addressOf(server), image.hash)).toBeUndefined();
    expect(await pool.holder(addressOf(server), image.hash).read(0, 1)).toBeUndefined();
  });

  test("comes over a new connection when the peer has closed an idle one", async () => {
    await using server = await serve({ provider: small.provider, idleMs: 50 });
    await using pool = new PeerPool({ keys });
    await using remoteImage = remote(small, [pool.holder(addressOf(server), small.hash)], { readAhead: 1 });
    await remoteImage.fetch(small.filled[0]!, 1, { urgent: true });
    await turns(() => server.connections === 0);
    await remoteImage.fetch(small.filled[100]!, 1, { urgent: true });
    expect(remoteImage.stats).toMatchObject({ fetchedPages: 2, holderFailures: 0 });
  });
});

describe("a bad holder", () => {
  type Read = { id: number; first: number; count: number };
  const pages = ({ id, first, count }: Read, bytes = small.range(first, count)) =>
    encodeAnswer({ kind: "pages", id, first, count, encoding: "raw", bytes });
  const flipped = (bytes: Buffer) => {
    const copy = Buffer.from(bytes);
    copy[copy.length - 1]! ^= 1;
    return copy;
  };
  /** Two halves of the answer, each right in itself. */
  const halves = (read: Read): [Buffer, Buffer] => {
    const middle = Math.ceil(read.count / 2);
    const second = { ...read, first: read.first + middle, count: read.count - middle };
    return [pages({ ...read, count: middle }), pages(second)];
  };

  const setAside: [string, (read: Read) => Buffer[]][] = [
    ["damaged pages", (read) => [pages(read, flipped(small.range(read.first, read.count)))]],
    ["too few pages", (read) => [pages(read, small.range(read.first, read.count).subarray(PAGE_BYTES))]],
    ["no pages", (read) => [pages(read, Buffer.alloc(0))]],
    ["other pages", (read) => [pages(read, small.range((read.first + 50) % 250, read.count))]],
  ];
  const closed: [string, (read: Read) => Buffer[]][] = [
    ["too many bytes", (read) => [pages(read, Buffer.alloc(257 * PAGE_BYTES))]],
    ["half a page", (read) => [pages(read, small.range(read.first, read.count).subarray(7))]],
    ["frames in another order", (read) => halves(read).toReversed()],
    ["frames twice", (read) => [pages({ ...read, count: 2 }), pages({ ...read, count: 2 })]],
    ["answers twice", (read) => [pages(read), pages(read)]],
    ["noise", () => [Buffer.alloc(500, 0x5a)]],
    ["half an answer, and then noise", (read) => [pages(read).subarray(0, 300), Buffer.alloc(MIB * 2, 0xff)]],
  ];

  test.each([...setAside, ...closed])("that sends %s costs no more than its turn", async (name, answer) => {
    await using hostile = await ScriptedPageServer.start(
      keys,
      answeringReads(small, (read, say) => say(...answer(read))),
    );
    await using server = await serve({ provider: small.provider });
    await using pool = new PeerPool({ keys });
    const holders = [hostile, server].map((each) => pool.holder(addressOf(each), small.hash));
    await using remoteImage = remote(small, holders);
    await Promise.all([remoteImage.fetch(small.filled[9]!, 1, { urgent: true }), remoteImage.prefetch()]);
    expectWhole(remoteImage, small);
    const { badAnswers, holderFailures } = remoteImage.stats;
    if (setAside.some(([one]) => one === name)) {
      // Several may have been asked for at once.
      expect(badAnswers).toBeGreaterThan(0);
    } else expect(holderFailures).toBeGreaterThan(0);
  });

  test("that answers in other orders and after a while is as good as any", async () => {
    const waiting: (() => void)[] = [];
    const timer = setInterval(() => waiting.pop()?.(), 2);
    await using hostile = await ScriptedPageServer.start(
      keys,
      answeringReads(small, (read, say) => {
        waiting.push(() => say(...halves(read).map((half) => half)));
      }),
    );
    await using pool = new PeerPool({ keys });
    await using remoteImage = remote(small, [pool.holder(hostile.address, small.hash)]);
    await Promise.all([remoteImage.fetch(100, 1, { urgent: true }), remoteImage.prefetch()]);
    clearInterval(timer);
    expectWhole(remoteImage, small);
    expect(remoteImage.stats).toMatchObject({ badAnswers: 0, holderFailures: 0 });
  });

  test.each<[string, (say: (...parts: Uint8Array[]) => void, read: Read) => void]>([
    ["never answers", () => undefined],
    ["stops in an answer", (say, read) => say(pages(read).subarray(0, 1000))],
  ])("that %s is given up for another", async (_name, answer) => {
    await using hostile = await ScriptedPageServer.start(
      keys,
      answeringReads(small, (read, say) => answer(say, read)),
    );
    await using server = await serve({ provider: small.provider });
    await using pool = new PeerPool({ keys, requestMs: 200 });
    const holders = [hostile, server].map((each) => pool.holder(addressOf(each), small.hash));
    await using remoteImage = remote(small, holders);
    await Promise.all([remoteImage.fetch(small.filled[9]!, 1, { urgent: true }), remoteImage.prefetch()]);
    expectWhole(remoteImage, small);
    expect(remoteImage.stats.holderFailures).toBeGreaterThan(0);
  });

  test("that is killed in the middle is followed by another", async () => {
    await using script = new Script(SERVES_PAGES, [join(home.path, "keys"), "8192", "1500"]);
    const dying = { host: HOST, port: Number(await script.line()) };
    await using server = await serve();
    await using pool = new PeerPool({ keys });
    const holders = [dying, addressOf(server)].map((address) => pool.holder(address, image.hash));
    await using remoteImage = remote(image, holders);
    await remoteImage.prefetch();
    expect((await script.exited).signal).toBe("SIGKILL");
    expectWhole(remoteImage, image);
    expect(server.stats.pages).toBeLessThan(image.filled.length);
    expect(remoteImage.stats.holderFailures).toBeGreaterThan(0);
    expect(remoteImage.stats.fetchedPages).toBe(image.filled.length);
  });

  test("is the last one: what is here stays, and the rest is said to be unavailable", async () => {
    await using script = new Script(SERVES_PAGES, [join(home.path, "keys"), "8192", "1500"]);
    const dying = { host: HOST, port: Number(await script.line()) };
    await using pool = new PeerPool({ keys });
    await using remoteImage = remote(image, [pool.holder(dying, image.hash)], { giveUpMs: 3000 });
    const error = await rejection(remoteImage.prefetch());
    expect(error.code).toBe("PAGES_UNAVAILABLE");
    expect(error.message).toContain(`of image abc: ${HOST}:${dying.port}: `);
    expect(remoteImage.complete).toBe(false);
    const { fetchedPages } = remoteImage.stats;
    expect(fetchedPages).toBeGreaterThan(0);
    const target = Buffer.alloc(PAGE_BYTES);
    const here = image.filled.filter((page) => remoteImage.read(page, 1, target, 0));
    expect(here).toHaveLength(fetchedPages);
    for (const page of here) {
      remoteImage.read(page, 1, target, 0);
      expect(target.equals(image.page(page))).toBe(true);
    }
  });
});

describe("a memory image on a full disk", () => {
  test.if(canMount)("is told once, and still gives every page that is fetched", async () => {
    using disk = smallTmpfs(4096);
    await using server = await serve();
    await using pool = new PeerPool({ keys });
    const told: unknown[] = [];
    await using remoteImage = remote(image, [pool.holder(addressOf(server), image.hash)], {
      local: SparseImage.open(join(disk.path, "memory"), image.pages),
      onDegraded: (error) => told.push(error),
    });
    await remoteImage.prefetch();
    expect(told).toEqual([expect.objectContaining({ code: "ENOSPC" })]);
    expect(remoteImage.complete).toBe(false);
    const target = Buffer.alloc(64 * PAGE_BYTES);
    for (let page = 0; page < image.pages; page += 64) {
      await remoteImage.fetch(page, 64, { urgent: page % 128 === 0 });
      expect(remoteImage.read(page, 64, target, 0)).toBe(true);
      expect(target.equals(image.bytes.subarray(page * PAGE_BYTES, (page + 64) * PAGE_BYTES))).toBe(true);
    }
    expect(told).toHaveLength(1);
  });
});

describe("a connection that is served", () => {
  function served(options: Partial<ServedConnectionOptions> = {}) {
    const { near, far } = duplexPair();
    const received: PeerAnswer[] = [];
    const reader = answerReader((answer) => received.push(answer));
    const stats = { requests: 0, pages: 0, compressedPages: 0, sentBytes: 0 };
    far.on("data", (chunk: Buffer) => reader.push(chunk)).on("error", () => far.destroy());
    const troubles: unknown[] = [];
    const onTrouble = (error: unknown) => troubles.push(error);
    const connection = new ServedConnection(near, { provider: image.provider, onTrouble, ...options }, stats);
    const answers = () => received;
    const read = (id: number, urgent = false) =>
      encodeRequest({ kind: "read", id, image: 1, first: (id * 256) % 8192, count: 256, urgent });
    const open = encodeRequest({ kind: "open", id: 0xffff, hash: image.hash });
    far.write(Buffer.concat([encodeHello(), open]));
    return { near, far, stats, troubles, connection, answers, read };
  }

  test("has urgent pages before others that were asked for before", async () => {
    const { far, connection, answers, read } = served();
    await turns(() => answers().length === 1);
    far.write(Buffer.concat([read(1), read(2), read(3), read(4, true)]));
    await turns(() => answers().length === 1 + 4 * 8);
    const order = answers().map(({ id }) => id);
    expect(order.slice(1, 9)).toEqual(Array(8).fill(4));
    far.write(Buffer.concat([read(5), read(6)]));
    await turns(() => answers().length > 33 + 2);
    far.write(read(7, true));
    await turns(() => answers().length === 33 + 3 * 8);
    const urgent = answers().findIndex(({ id }) => id === 7);
    expect(urgent).toBeLessThan(33 + 10);
    connection.end();
    await connection.closed;
  });

  test("makes no more answers than are taken", async () => {
    const { near, far, stats, connection, answers, read } = served({ compression: "never" });
    await turns(() => answers().length === 1);
    near.hold();
    far.write(Buffer.concat(Array.from({ length: 100 }, (_value, at) => read(at + 1))));
    await turns(() => near.isPaused());
    const { sentBytes } = stats;
    expect(near.writableLength).toBeLessThan(MIB + 33 * PAGE_BYTES);
    for (let turn = 0; turn < 50; turn++) await turns(() => true);
    expect(stats.sentBytes).toBe(sentBytes);
    near.release();
    await turns(() => answers().length === 1 + 100 * 8);
    expect(near.isPaused()).toBe(false);
    connection.end();
    await connection.closed;
  });

  test("compresses what waits for the network, and nothing else", async () => {
    const { near, far, stats, connection, answers, read } = served();
    await turns(() => answers().length === 1);
    for (let id = 1; id <= 8; id++) {
      const before = answers().length;
      far.write(encodeRequest({ kind: "read", id, image: 1, first: id * 16, count: 8, urgent: true }));
      await turns(() => answers().length > before);
    }
    expect(stats.compressedPages).toBe(0);
    near.hold();
    far.write(Buffer.concat(Array.from({ length: 32 }, (_value, at) => read(at + 100))));
    await turns(() => near.isPaused());
    expect(stats.compressedPages).toBeGreaterThan(0);
    near.release();
    await turns(() => answers().length === 1 + 8 + 32 * 8);
    connection.end();
    await connection.closed;
  });

  test("has so many requests at a time", async () => {
    const { near, far, troubles, connection, answers, read } = served();
    await turns(() => answers().length === 1);
    near.hold();
    far.write(Buffer.concat(Array.from({ length: 400 }, (_value, at) => read(at + 1, true))));
    await connection.closed;
    expect(troubles).toEqual([expect.objectContaining({ message: "More than 256 requests at once" })]);
  });

  test("is closed when nothing of what there is for it is taken", async () => {
    const { near, far, troubles, connection, answers, read } = served({ stallMs: 50 });
    await turns(() => answers().length === 1);
    near.hold();
    far.write(read(1));
    await connection.closed;
    expect(troubles).toEqual([expect.objectContaining({ message: "The peer has taken nothing for 50 ms" })]);
  });

  test("takes little memory for a client over TLS that reads nothing", async () => {
    await using server = await serve({ compression: "never" });
    const socket = connectTls({ host: HOST, port: server.port, ...clientTls(keys) });
    socket.on("error", () => socket.destroy());
    await once(socket, "secureConnect");
    socket.pause();
    socket.write(encodeHello());
    socket.write(encodeRequest({ kind: "open", id: 1, hash: image.hash }));
    await turns(() => server.stats.requests === 1);
    const before = process.memoryUsage().rss;
    for (let id = 2; id < 202; id++) {
      const first = (id * 256) % 8192;
      socket.write(encodeRequest({ kind: "read", id, image: 1, first, count: 256, urgent: false }));
    }
    // Until no more is sent: what the kernels of both ends hold, and the server's own bound.
    let sent = -1;
    while (sent !== server.stats.sentBytes) {
      sent = server.stats.sentBytes;
      await new Promise((resolve) => setTimeout(resolve, 200));
    }
    const grown = process.memoryUsage().rss - before;
    socket.destroy();
    // Where the runtime heeds that its client reads nothing; Deno's takes all of it.
    if (process.versions.deno === undefined) expect(sent).toBeLessThan(32 * MIB);
    if (process.versions.deno === undefined) expect(grown).toBeLessThan(64 * MIB);
    await turns(() => server.connections === 0);
  });
});
