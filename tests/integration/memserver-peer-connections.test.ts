import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { join } from "node:path";
import type { TLSSocket } from "node:tls";
import { PeerClient } from "../../memserver/peer/client.ts";
import { type InstallationKeys, installationKeys } from "../../memserver/peer/keys.ts";
import { encodeAnswer, encodeHello, type PeerAnswer } from "../../memserver/peer/messages.ts";
import { PageServer, type PageServerOptions } from "../../memserver/peer/server.ts";
import { checkPeer } from "../../memserver/peer/tls.ts";
import { rejection } from "../support/agent-peer.ts";
import { pagesOf } from "../support/memserver-pages.ts";
import { KEY, MadeUpImage, madeUpImage } from "../support/memserver-peers.ts";
import {
  honestAnswer,
  plainServer,
  ScriptedPageServer,
  sayPlainly,
  saySecurely,
} from "../support/scripted-page-server.ts";
import { type TemporaryDirectory, temporaryDirectory } from "../support/vm.ts";

const HOST = "127.0.0.1";
const image = madeUpImage(600);
let home: TemporaryDirectory;
let keys: InstallationKeys;
let others: InstallationKeys;

beforeAll(async () => {
  home = temporaryDirectory();
  keys = await installationKeys(join(home.path, "keys"));
  others = await installationKeys(join(home.path, "others"));
});

afterAll(() => home[Symbol.dispose]());

async function serve(
  options: Partial<PageServerOptions> = {},
): Promise<PageServer & { troubles: unknown[] }> {
  const troubles: unknown[] = [];
  const server = await PageServer.listen({
    ...{ host: HOST, port: 0, keys, provider: image.provider, onTrouble: (error) => troubles.push(error) },
    ...options,
  });
  return Object.assign(server, { troubles });
}

function connect(port: number, options: { signal?: AbortSignal; connectMs?: number } = {}) {
  return PeerClient.connect({ host: HOST, port, keys, ...options });
}

/** Something that the server still does after what it has refused. */
async function expectServing(port: number): Promise<void> {
  await using client = await connect(port);
  expect(await client.find(KEY)).toBe(image.hash);
}

describe("PeerClient and PageServer", () => {
  test("give an image by the key of a request", async () => {
    await using server = await serve();
    await using client = await connect(server.port);
    expect(await client.find("0".repeat(64))).toBeUndefined();
    expect(await client.open("0".repeat(64))).toBeUndefined();
    const hash = await client.find(KEY);
    expect(hash).toBe(image.hash);
    const opened = (await client.open(hash!))!;
    expect(opened.pages).toBe(image.pages);
    expect(opened.descriptor.equals(image.descriptor)).toBe(true);
    expect((await client.table(opened)).root).toBe(image.table.root);
    expect(await client.workingSet(opened)).toBeUndefined();
    for (const [first, count] of [
      [0, 256],
      [255, 1],
      [400, 200],
    ] as const) {
      expect((await client.read(opened, first, count))?.equals(image.range(first, count))).toBe(true);
      expect((await client.read(opened, first, count, { urgent: true }))?.length).toBe(
        image.range(first, count).length,
      );
    }
    client.close(opened);
    expect((await rejection(client.read(opened, 0, 1))).message).toContain("No open image 1");
    expect(server.connections).toBe(1);
  });

  test("give tables and working sets that take several frames", async () => {
    const pages = 40_000;
    const order = Uint32Array.from({ length: pages }, (_value, at) => (at * 7919) % pages);
    const bytes = Buffer.alloc(pages * 4096);
    for (let page = 0; page < pages; page += 3) bytes.writeUInt32LE(page + 1, page * 4096);
    const large = new MadeUpImage(bytes, order);
    await using server = await serve({ provider: large.provider });
    await using client = await connect(server.port);
    const opened = (await client.open(large.hash))!;
    expect((await client.table(opened)).bytes.equals(large.table.bytes)).toBe(true);
    expect(await client.workingSet(opened)).toEqual(order);
  });

  test("have many requests at a time on one connection, more than one may have", async () => {
    await using server = await serve();
    await using client = await connect(server.port);
    const opened = (await client.open(image.hash))!;
    const reads = Array.from({ length: 1000 }, (_value, at) =>
      client.read(opened, at % 500, 1 + (at % 90), { urgent: at % 3 === 0 }),
    );
    for (const [at, bytes] of (await Promise.all(reads)).entries()) {
      expect(bytes?.equals(image.range(at % 500, 1 + (at % 90)))).toBe(true);
    }
    expect(server.troubles).toEqual([]);
  });

  test("go on after an abort of one request", async () => {
    await using server = await serve();
    await using client = await connect(server.port);
    const opened = (await client.open(image.hash))!;
    const abort = new AbortController();
    const aborted = [1, 2, 3].map((at) => rejection(client.read(opened, at, 200, { signal: abort.signal })));
    const other = client.read(opened, 0, 256);
    abort.abort();
    for (const error of await Promise.all(aborted)) expect(error.code).toBe("ABORTED");
    expect((await other)?.length).toBe(image.range(0, 256).length);
    expect((await rejection(client.find(KEY, { signal: AbortSignal.abort() }))).code).toBe("ABORTED");
    expect(await client.find(KEY)).toBe(image.hash);
  });

  test("fail all requests when either end closes", async () => {
    await using server = await serve({
      provider: { find: () => new Promise(() => undefined), open: async () => undefined },
    });
    await using first = await connect(server.port);
    const given = rejection(first.find(KEY));
    await first[Symbol.asyncDispose]();
    expect((await given).code).toBe("PEER_FAILED");
    expect((await rejection(first.find(KEY))).message).toContain("the connection was given up");
    await using second = await connect(server.port);
    const lost = rejection(second.find(KEY));
    await server[Symbol.asyncDispose]();
    expect((await lost).code).toBe("PEER_FAILED");
    expect((await second.closed).code).toBe("PEER_FAILED");
    expect(second.ended).toBe("closed");
  });

  test.each(["0".repeat(63), "g".repeat(64), "A".repeat(64), ""])("refuse %s as a hash", async (hash) => {
    await using server = await serve();
    await using client = await connect(server.port);
    expect((await rejection(client.find(hash))).code).toBe("BAD_ARGUMENT");
    expect((await rejection(client.open(hash))).code).toBe("BAD_ARGUMENT");
  });
});

describe("PageServer", () => {
  const hello = encodeHello();

  test("lets nobody in without the installation's key", async () => {
    await using server = await serve({ handshakeMs: 200 });
    await using client = await connect(server.port);
    expect(await saySecurely(server.port, hello, keys, false)).toEqual(Buffer.alloc(0));
    expect(await saySecurely(server.port, hello, others)).toEqual(Buffer.alloc(0));
    // A runtime may answer with an alert of TLS.
    for (const bytes of [hello, Buffer.from("GET / HTTP/1.1\r\n\r\n"), Buffer.alloc(0)]) {
      expect((await sayPlainly(server.port, bytes)).length).toBeLessThan(16);
    }
    expect(server.connections).toBe(1);
    expect(server.troubles.length).toBeGreaterThan(0);
    expect(server.stats.requests).toBe(0);
    await expectServing(server.port);
    expect(await client.find(KEY)).toBe(image.hash);
  });

  test.each<[string, Uint8Array]>([
    ["another protocol", Buffer.from("GET / HTTP/1.1\r\n\r\n")],
    ["another version", encodeHello(7)],
    ["a request before HELLO", encodeAnswer({ kind: "none", id: 1 })],
    ["a bad frame", Buffer.concat([hello, Buffer.alloc(100, 0xff)])],
  ])("closes a connection that speaks %s", async (_name, bytes) => {
    await using server = await serve();
    await using client = await connect(server.port);
    expect(await saySecurely(server.port, bytes, keys)).toEqual(hello);
    expect(server.troubles).toEqual([expect.objectContaining({ code: "PEER_FAILED" })]);
    expect(await client.find(KEY)).toBe(image.hash);
  });

  test("closes a connection that does TLS and says nothing more", async () => {
    await using server = await serve({ helloMs: 50 });
    expect(await saySecurely(server.port, hello.subarray(0, 5), keys)).toEqual(hello);
    expect(server.troubles).toEqual([
      expect.objectContaining({ message: "The peer has said no HELLO in 50 ms" }),
    ]);
  });

  test("closes a connection that is idle", async () => {
    await using server = await serve({ idleMs: 50 });
    await using client = await connect(server.port);
    expect((await client.closed).message).toContain("closed");
    expect(server.troubles).toEqual([]);
  });

  test("takes so many connections at a time", async () => {
    await using server = await serve({ maxConnections: 2 });
    const clients = [await connect(server.port), await connect(server.port)];
    expect((await rejection(connect(server.port))).code).toBe("PEER_FAILED");
    for (const client of clients) expect(await client.find(KEY)).toBe(image.hash);
    await clients[0]![Symbol.asyncDispose]();
    // The server learns of the end a little later.
    let again: PeerClient | undefined;
    while (!again) again = await connect(server.port).catch(() => undefined);
    for (const client of [...clients, again]) await client[Symbol.asyncDispose]();
  });

  test("opens so many images for a connection, and disposes of them at its end", async () => {
    let open = 0;
    const provider = {
      find: async () => undefined,
      open: async () => {
        open += 1;
        return image.served({
          [Symbol.asyncDispose]: async () => {
            open -= 1;
          },
        });
      },
    };
    await using server = await serve({ provider, maxImages: 3 });
    await using client = await connect(server.port);
    const images = await Promise.all([1, 2, 3].map(() => client.open(image.hash)));
    expect((await rejection(client.open(image.hash))).message).toContain("More than 3 images at once");
    client.close(images[1]!);
    expect(await client.open(image.hash)).toBeDefined();
    expect(open).toBe(3);
    await client[Symbol.asyncDispose]();
    while (open > 0) await new Promise((resolve) => setImmediate(resolve));
    await server[Symbol.asyncDispose]();
    expect(open).toBe(0);
  });

  test("disposes of an image that it got after the connection had ended", async () => {
    const opening = Promise.withResolvers<void>();
    const disposed = Promise.withResolvers<void>();
    const signals: AbortSignal[] = [];
    const provider = {
      find: async () => undefined,
      open: async (_hash: string, signal: AbortSignal) => {
        signals.push(signal);
        await opening.promise;
        return image.served({ [Symbol.asyncDispose]: async () => disposed.resolve() });
      },
    };
    await using server = await serve({ provider });
    const client = await connect(server.port);
    const asked = rejection(client.open(image.hash));
    while (signals.length === 0) await new Promise((resolve) => setImmediate(resolve));
    await client[Symbol.asyncDispose]();
    await asked;
    while (!signals[0]!.aborted) await new Promise((resolve) => setImmediate(resolve));
    opening.resolve();
    await disposed.promise;
  });

  test("answers with an error what it cannot give, and goes on", async () => {
    const broken = () => {
      throw Object.assign(new Error("EIO: i/o error, read"), { code: "EIO" });
    };
    const provider = {
      find: async () => broken(),
      open: async () => image.served({ read: broken, workingSet: async () => broken() }),
    };
    await using server = await serve({ provider });
    await using client = await connect(server.port);
    const opened = (await client.open(image.hash))!;
    for (const asked of [
      client.find(KEY),
      client.read(opened, 0, 256),
      client.read(opened, 0, 256, { urgent: true }),
      client.workingSet(opened),
    ]) {
      const error = await rejection(asked);
      expect(error).toMatchObject({
        code: "PEER_FAILED",
        message: expect.stringContaining("EIO: Cannot serve"),
      });
    }
    expect(server.troubles).toHaveLength(4);
    expect((await client.table(opened)).root).toBe(image.table.root);
  });

  test("says which pages it has not", async () => {
    const plain = image.served();
    const provider = {
      find: async () => undefined,
      open: async () =>
        image.served({
          read: (page, count, ...rest) => page + count <= 300 && plain.read(page, count, ...rest),
        }),
    };
    await using server = await serve({ provider });
    await using client = await connect(server.port);
    const opened = (await client.open(image.hash))!;
    expect(await client.read(opened, 0, 250)).toBeDefined();
    expect(await client.read(opened, 200, 256)).toBeUndefined();
    expect(await client.read(opened, 0, 250)).toBeDefined();
  });
});

describe("checkPeer()", () => {
  const socket = (raw: Buffer | undefined, authorized: boolean) =>
    ({ authorized, remoteAddress: "10.0.0.1", getPeerCertificate: () => ({ raw }) }) as unknown as TLSSocket;

  test("knows the installation's certificate itself", () => {
    expect(() => checkPeer(socket(keys.raw, true), keys)).not.toThrow();
  });

  // Whatever a runtime's TLS lets through.
  test.each<[string, () => TLSSocket]>([
    ["another certificate", () => socket(others.raw, true)],
    ["no certificate", () => socket(undefined, true)],
    ["a certificate that was not proven", () => socket(keys.raw, false)],
  ])("refuses a peer with %s", (_name, make) => {
    expect(() => checkPeer(make(), keys)).toThrow("The peer at 10.0.0.1 has not this installation's key");
  });
});

describe("PeerClient.connect()", () => {
  test("refuses a server that has another key", async () => {
    await using server = await serve({ keys: others });
    const error = await rejection(connect(server.port));
    expect(error.code).toBe("PEER_FAILED");
    expect(error.message).toContain("it has other keys than this host");
    expect(server.stats.requests).toBe(0);
  });

  test("fails where nobody listens", async () => {
    const { port } = await (async () => {
      await using server = await serve();
      return { port: server.port };
    })();
    const error = await rejection(connect(port));
    expect(error).toMatchObject({
      code: "PEER_FAILED",
      message: expect.stringContaining(`Cannot connect to peer ${HOST}:${port}`),
    });
  });

  test("gives up on a server that says nothing", async () => {
    await using silent = await plainServer(() => undefined);
    const error = await rejection(connect(silent.port, { connectMs: 100 }));
    expect(error).toMatchObject({
      code: "PEER_FAILED",
      message: `Peer ${HOST}:${silent.port}: no connection in 100 ms`,
    });
    await using mute = await ScriptedPageServer.start(keys, () => undefined, Buffer.alloc(0));
    const again = await rejection(connect(mute.port, { connectMs: 200 }));
    expect(again.message).toBe(`Peer ${HOST}:${mute.port}: no connection in 200 ms`);
    while (mute.connections > 0) await new Promise((resolve) => setImmediate(resolve));
  });

  test("fails with a server that closes, or speaks something else", async () => {
    await using closing = await plainServer((socket) => socket.destroy());
    expect((await rejection(connect(closing.port))).code).toBe("PEER_FAILED");
    await using web = await plainServer((socket) => socket.end("HTTP/1.1 400 Bad Request\r\n\r\n"));
    expect((await rejection(connect(web.port))).code).toBe("PEER_FAILED");
    await using other = await ScriptedPageServer.start(keys, () => undefined, encodeHello(9));
    expect((await rejection(connect(other.port))).message).toContain("speaks version 9 of the page protocol");
  });

  test("ends at an abort", async () => {
    await using silent = await plainServer(() => undefined);
    const abort = new AbortController();
    const connecting = rejection(connect(silent.port, { signal: abort.signal }));
    abort.abort();
    expect((await connecting).code).toBe("ABORTED");
    expect((await rejection(connect(silent.port, { signal: AbortSignal.abort() }))).code).toBe("ABORTED");
  });
});

describe("PeerClient", () => {
  const small = new MadeUpImage(pagesOf(0, 20), Uint32Array.of(1, 2));
  const other = new MadeUpImage(pagesOf(100, 20));
  const pages = (id: number, first: number, count: number, bytes = small.range(first, count)) =>
    ({ kind: "pages", id, first, count, encoding: "raw", bytes }) as const;

  const wrong: [string, (id: number) => PeerAnswer | Buffer, string][] = [
    ["an answer of another kind", (id) => ({ kind: "none", id }), 'Answer "none" to "read"'],
    ["an answer to nothing", (id) => ({ kind: "missing", id: id + 1000 }), 'Answer "missing" to no request'],
    ["pages of elsewhere", (id) => pages(id, 3, 8), "Pages 3 to 11 instead of 2 to 10"],
    ["more pages", (id) => pages(id, 2, 9), "Pages 2 to 11 instead of 2 to 10"],
    ["more bytes than pages", (id) => pages(id, 2, 3, small.range(2, 4)), "16384 bytes for at most 3 pages"],
    ["part of a page", (id) => pages(id, 2, 8, small.range(2, 8).subarray(7)), "bytes for at most 8 pages"],
    [
      "pages that are no Zstandard",
      (id) => ({ ...pages(id, 2, 8), encoding: "zstd" }),
      "Compressed pages have no magic",
    ],
    ["a frame that is none", () => Buffer.alloc(64, 0xfe), "Unknown frame 254"],
    ["another HELLO", () => encodeHello(), "A second HELLO"],
  ];

  test.each(wrong)("gives a peer up that sends %s", async (_name, answer, reason) => {
    await using hostile = await ScriptedPageServer.start(keys, (request, say) => {
      const said = request.kind === "read" ? answer(request.id) : honestAnswer(small, request);
      say(Buffer.isBuffer(said) ? said : encodeAnswer(said));
    });
    await using client = await connect(hostile.port);
    await using beside = await connect(hostile.port);
    const opened = (await client.open(small.hash))!;
    const errors = await Promise.all([
      rejection(client.read(opened, 2, 8)),
      rejection(client.read(opened, 2, 8)),
    ]);
    for (const { code, message } of errors) {
      expect([code, message]).toEqual(["PEER_FAILED", expect.stringContaining(reason)]);
    }
    expect((await client.closed).message).toBe(errors[0]!.message);
    while (hostile.connections > 1) await new Promise((resolve) => setImmediate(resolve));
    expect(await beside.find(KEY)).toBe(small.hash);
  });

  const misled: [string, (answer: PeerAnswer) => PeerAnswer, string][] = [
    [
      "another descriptor",
      (answer) => (answer.kind === "opened" ? { ...answer, descriptor: other.descriptor } : answer),
      `A descriptor that has not the hash ${small.hash}`,
    ],
    [
      "another size",
      (answer) => (answer.kind === "opened" ? { ...answer, pages: 21 } : answer),
      "An image of 21 pages instead of 20",
    ],
    [
      "another table",
      (answer) => (answer.kind === "table" ? { ...answer, entries: other.table.bytes } : answer),
      `its page table has not the hash ${small.table.root}`,
    ],
    [
      "less of the table",
      (answer) => (answer.kind === "table" ? { ...answer, entries: answer.entries.subarray(16) } : answer),
      "304 bytes of the table at 0",
    ],
    [
      "a working set of other pages",
      ({ id }) => ({ kind: "working-set", id, first: 0, pages: [20] }),
      "A working set of other pages",
    ],
    [
      "a working set of more pages than there are",
      ({ id }) => ({ kind: "working-set", id, first: 0, pages: Array.from({ length: 21 }, () => 1) }),
      "A working set larger than its image",
    ],
    [
      "another part of the working set",
      ({ id }) => ({ kind: "working-set", id, first: 1, pages: [1] }),
      "A working set of other pages",
    ],
  ];

  test.each(misled)("is not misled by a peer that sends %s", async (_name, change, reason) => {
    await using hostile = await ScriptedPageServer.start(keys, (request, say) => {
      const working = reason.includes("working set") === (request.kind === "working-set");
      const honest = honestAnswer(small, request);
      say(encodeAnswer(working ? change(honest) : honest));
    });
    await using client = await connect(hostile.port);
    const error = await rejection(
      (async () => {
        const opened = (await client.open(small.hash))!;
        await client.table(opened);
        await client.workingSet(opened);
      })(),
    );
    expect(error).toMatchObject({ code: "PEER_FAILED", message: expect.stringContaining(reason) });
  });

  test("gives a peer up that takes requests and answers none", async () => {
    await using silent = await ScriptedPageServer.start(keys, () => undefined);
    await using client = await PeerClient.connect({ host: HOST, port: silent.port, keys, requestMs: 100 });
    const errors = await Promise.all([rejection(client.find(KEY)), rejection(client.open(small.hash))]);
    for (const { message } of errors) {
      expect(message.replace(/\d+ ms/, "N ms")).toBe(
        `Peer ${HOST}:${silent.port}: it has not answered "find" in N ms`,
      );
    }
    expect(client.ended).toBe("late");
    while (silent.connections > 0) await new Promise((resolve) => setImmediate(resolve));
  });

  test("gives no peer up whose answers come late, but in time", async () => {
    await using slow = await ScriptedPageServer.start(keys, (request, say) => {
      setTimeout(() => say(encodeAnswer(honestAnswer(small, request))), 60);
    });
    await using client = await PeerClient.connect({ host: HOST, port: slow.port, keys, requestMs: 10_000 });
    const opened = (await client.open(small.hash))!;
    const abort = new AbortController();
    const given = rejection(client.read(opened, 0, 8, { signal: abort.signal }));
    abort.abort();
    expect((await given).code).toBe("ABORTED");
    expect((await client.read(opened, 3, 8))?.equals(small.range(3, 8))).toBe(true);
  });

  test("is patient with a slow network, but not where a guest waits", async () => {
    await using slow = await ScriptedPageServer.start(keys, (request, say) => {
      const bytes = encodeAnswer(honestAnswer(small, request));
      if (request.kind !== "read") return say(bytes);
      // Twice as long as an urgent request may take, with something all the time.
      for (let part = 0; part < 20; part++) {
        const [from, to] = [part, part + 1].map((at) => Math.ceil((bytes.length * at) / 20));
        setTimeout(() => say(bytes.subarray(from, to)), part * 50);
      }
    });
    const options = { host: HOST, port: slow.port, keys, requestMs: 500 };
    await using patient = await PeerClient.connect(options);
    const opened = (await patient.open(small.hash))!;
    expect((await patient.read(opened, 3, 8))?.equals(small.range(3, 8))).toBe(true);
    await using urgent = await PeerClient.connect(options);
    const again = (await urgent.open(small.hash))!;
    expect((await rejection(urgent.read(again, 3, 8, { urgent: true }))).code).toBe("PEER_FAILED");
    expect(urgent.ended).toBe("late");
  });

  test("has no patience without end", async () => {
    const timers: NodeJS.Timeout[] = [];
    await using trickling = await ScriptedPageServer.start(keys, (request, say) => {
      const bytes = encodeAnswer(honestAnswer(small, request));
      let at = 0;
      timers.push(setInterval(() => say(bytes.subarray(at, ++at)), 20));
    });
    await using client = await PeerClient.connect({ host: HOST, port: trickling.port, keys, requestMs: 100 });
    expect((await rejection(client.open(small.hash))).code).toBe("PEER_FAILED");
    expect(client.ended).toBe("late");
    for (const timer of timers) clearInterval(timer);
  });

  test.each([
    [0, 0],
    [0, 257],
    [-1, 1],
    [15, 6],
  ])("asks for no pages %d and %d more", async (first, count) => {
    await using honest = await ScriptedPageServer.start(keys, (request, say) =>
      say(encodeAnswer(honestAnswer(small, request))),
    );
    await using client = await connect(honest.port);
    const opened = (await client.open(small.hash))!;
    expect((await rejection(client.read(opened, first, count))).code).toBe("BAD_ARGUMENT");
  });
});
