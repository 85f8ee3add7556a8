import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { join } from "node:path";
import fc from "fast-check";
import { codeOf } from "../../errors/errors.ts";
import { MAX_DESCRIPTOR_BYTES } from "../../memserver/descriptor.ts";
import { RemoteImage } from "../../memserver/image/remote-image.ts";
import { SparseImage } from "../../memserver/image/sparse-image.ts";
import { PeerClient } from "../../memserver/peer/client.ts";
import { HEAD_BYTES } from "../../memserver/peer/frames.ts";
import {
  answerReader,
  encodeAnswer,
  encodeHello,
  encodeRequest,
  type PeerAnswer,
  requestReader,
} from "../../memserver/peer/messages.ts";
import { ServedConnection } from "../../memserver/peer/served-connection.ts";
import { compress, decompress } from "../../memserver/peer/zstd.ts";
import { PAGE_BYTES } from "../../memserver/stream/format.ts";
import { pagesOf } from "../support/memserver-pages.ts";
import {
  MadeUpImage,
  madeUpImage,
  PEER_ANSWERS,
  PEER_REQUESTS,
  readAnswers,
  readRequests,
} from "../support/memserver-peers.ts";
import { chunksOf } from "../support/memserver-streams.ts";
import { ScriptedHolder } from "../support/scripted-holder.ts";
import { duplexPair } from "../support/scripted-page-server.ts";
import { type TemporaryDirectory, temporaryDirectory } from "../support/vm.ts";

const SEED = 20090401;
const hello = encodeHello();
const requests = Buffer.concat([hello, ...PEER_REQUESTS.map(encodeRequest)]);
const answers = Buffer.concat([hello, ...PEER_ANSWERS.map(encodeAnswer)]);
/** The largest frame. */
const MOST_HELD = HEAD_BYTES + 8 + MAX_DESCRIPTOR_BYTES;

const chunks = fc.array(fc.integer({ min: 1, max: 3000 }), { minLength: 1, maxLength: 20 });
const smallChunks = fc.array(fc.integer({ min: 1, max: 30 }), { minLength: 1, maxLength: 20 });
const value = fc.oneof(fc.constantFrom(0, 1, 2, 5, 7, 0x10, 0x7f, 0x82, 0x86, 0xff), fc.nat(255));
/** Mostly where there is no page's content. */
const edits = fc.array(fc.tuple(fc.oneof(fc.nat(400), fc.nat(20_000)), value), {
  minLength: 1,
  maxLength: 3,
});

function edited(bytes: Buffer, changes: readonly (readonly [number, number])[]): Buffer {
  const copy = Buffer.from(bytes);
  for (const [at, to] of changes) copy[at % copy.length] = to;
  return copy;
}

/** The result, or undefined for what is refused as it should be. */
function unlessRefused<T>(work: () => T): T | undefined {
  try {
    return work();
  } catch (error) {
    if (codeOf(error) !== "PEER_FAILED") throw error;
    return undefined;
  }
}

describe("requestReader() and answerReader()", () => {
  test("read the same messages from any chunks", () => {
    fc.assert(
      fc.property(fc.oneof(chunks, smallChunks), (lengths) => {
        expect(readRequests(requests, lengths)).toEqual([...PEER_REQUESTS]);
        expect(readAnswers(answers, lengths)).toEqual([...PEER_ANSWERS]);
      }),
      { seed: SEED, numRuns: 200 },
    );
  });

  test("refuse or read a stream with some bytes changed", () => {
    let refused = 0;
    fc.assert(
      fc.property(edits, chunks, (changes, lengths) => {
        const asked = edited(requests, changes);
        const read = unlessRefused(() => readRequests(asked, lengths));
        if (!read) refused += 1;
        // What was cut off at the end may be a frame that is not complete.
        else {
          const again = Buffer.concat([hello, ...read.map(encodeRequest)]);
          expect(again.equals(asked.subarray(0, again.length))).toBe(true);
        }
        const answered = edited(answers, changes);
        const heard = unlessRefused(() => readAnswers(answered, lengths));
        if (!heard) refused += 1;
        else expect(readAnswers(Buffer.concat([hello, ...heard.map(encodeAnswer)]))).toEqual(heard);
      }),
      { seed: SEED, numRuns: 4000 },
    );
    expect(refused).toBeGreaterThan(2000);
  });

  test("refuse or read any bytes, and hold no more than a frame", () => {
    const head = fc.tuple(
      fc.oneof(fc.nat(300), fc.constantFrom(5, MAX_DESCRIPTOR_BYTES + 13, 0x7fffffff)),
      fc.oneof(fc.integer({ min: 0, max: 8 }), fc.integer({ min: 0x80, max: 0x8a })),
      fc.oneof(fc.constantFrom(0, 1), fc.nat(0xffff)),
      fc.uint8Array({ maxLength: 300 }),
    );
    const frames = fc.array(head, { minLength: 1, maxLength: 4 }).map((each) =>
      Buffer.concat(
        each.flatMap(([length, type, id, payload]) => {
          const bytes = Buffer.alloc(HEAD_BYTES);
          bytes.writeUInt32BE(length);
          bytes[4] = type;
          bytes.writeUInt32BE(id, 5);
          return [bytes, payload];
        }),
      ),
    );
    const noise = fc.uint8Array({ maxLength: 2000 }).map((bytes) => Buffer.from(bytes));
    fc.assert(
      fc.property(fc.oneof(frames, noise), fc.boolean(), smallChunks, (bytes, greeted, lengths) => {
        const all = greeted ? Buffer.concat([hello, bytes]) : bytes;
        const readers = [requestReader(() => undefined), answerReader(() => undefined)];
        for (const reader of readers) {
          let pushed = 0;
          unlessRefused(() => {
            for (const chunk of chunksOf(all, lengths)) {
              reader.push(chunk);
              pushed += chunk.length;
              expect(reader.held).toBeLessThanOrEqual(pushed);
            }
          });
        }
      }),
      { seed: SEED, numRuns: 4000 },
    );
  });

  test("hold no more than the largest frame, however much comes", () => {
    const endless = Buffer.alloc(1024 * 1024);
    const descriptor = Buffer.alloc(8 + MAX_DESCRIPTOR_BYTES);
    const largest = Buffer.alloc(HEAD_BYTES);
    largest.writeUInt32BE(5 + descriptor.length);
    largest[4] = 0x84;
    largest[8] = 1;
    const reader = answerReader(() => undefined);
    reader.push(hello);
    unlessRefused(() => {
      for (let round = 0; round < 20; round++) {
        reader.push(largest);
        for (let part = 0; part < 5; part++) {
          reader.push(endless);
          expect(reader.held).toBeLessThanOrEqual(MOST_HELD);
        }
      }
    });
  });
});

describe("decompress()", () => {
  const text = Buffer.alloc(2 * PAGE_BYTES, "some text ");
  const packed = compress(text)!;

  test("refuses what is damaged, or gives no more than it may", () => {
    const damaged = fc.tuple(fc.array(fc.tuple(fc.nat(packed.length - 1), value)), fc.nat(packed.length));
    const noise = fc
      .uint8Array({ maxLength: 300 })
      .map((bytes) => Buffer.concat([packed.subarray(0, 4), bytes]));
    const frames = fc.oneof(
      damaged.map(([changes, cut]) => edited(packed, changes).subarray(0, cut)),
      noise,
      fc.uint8Array({ maxLength: 100 }).map((bytes) => Buffer.from(bytes)),
    );
    fc.assert(
      fc.property(frames, fc.constantFrom(0, 100, text.length), (bytes, most) => {
        const result = unlessRefused(() => decompress(bytes, most));
        return result === undefined || result.length <= most;
      }),
      { seed: SEED, numRuns: 4000 },
    );
  });
});

describe("PeerClient", () => {
  const image = new MadeUpImage(pagesOf(0, 20), Uint32Array.of(3, 1));

  /** What an honest server says to the client's first requests, each in the order in which it is asked. */
  function honest(): PeerAnswer[] {
    const { pages, descriptor, table } = image;
    return [
      { kind: "opened", id: 1, image: 1, pages, descriptor },
      { kind: "table", id: 2, first: 0, entries: table.bytes },
      { kind: "working-set", id: 3, first: 0, pages: [3, 1] },
      { kind: "pages", id: 4, first: 5, count: 2, encoding: "raw", bytes: image.range(5, 2) },
      { kind: "pages", id: 4, first: 7, count: 1, encoding: "raw", bytes: image.range(7, 1) },
      { kind: "none", id: 5 },
    ];
  }

  test("ends each request with its answer or PEER_FAILED, whatever is said", async () => {
    const said = honest().map(encodeAnswer);
    let failed = 0;
    await fc.assert(
      fc.asyncProperty(edits, chunks, fc.boolean(), async (changes, lengths, cut) => {
        const { near, far } = duplexPair();
        far.on("error", () => far.destroy());
        // The page's content is changed often enough: mostly the heads.
        let next = 0;
        const change = (bytes: Buffer, at: number) =>
          at === changes[0]![0] % said.length ? edited(bytes, changes) : bytes;
        far.on("data", (chunk: Buffer) => {
          // One answer for each request, but two for a READ.
          let frames = 0;
          for (let at = 0; at + 4 <= chunk.length; at += 4 + chunk.readUInt32BE(at)) frames += 1;
          for (; frames > 0 && next < said.length; frames--) {
            for (const last = next === 3 ? 4 : next; next <= last; next++) {
              for (const part of chunksOf(change(said[next]!, next), lengths)) near.push(Buffer.from(part));
            }
          }
          if (cut && next > 2) far.destroy();
          else if (next >= said.length) setImmediate(() => far.destroy());
        });
        near.push(hello);
        const client = await PeerClient.over(near, { name: "fuzz", requestMs: 60 });
        const ended = async <T>(work: Promise<T>): Promise<T | undefined> => {
          try {
            return await work;
          } catch (error) {
            if (codeOf(error) !== "PEER_FAILED") throw error;
            failed += 1;
            return undefined;
          }
        };
        const opened = await ended(client.open(image.hash));
        const at = opened ?? {
          handle: 1,
          pages: 20,
          descriptor: image.descriptor,
          tableHash: image.table.root,
        };
        const table = await ended(client.table(at));
        if (table) expect(table.root).toBe(image.table.root);
        const set = await ended(client.workingSet(at));
        if (set) expect(set.every((page) => page < 20)).toBe(true);
        const bytes = await ended(client.read(at, 5, 3));
        if (bytes) expect([0, 1, 2, 3].map((count) => count * PAGE_BYTES)).toContain(bytes.length);
        await ended(client.find("0".repeat(64)));
        await client[Symbol.asyncDispose]();
        expect((await client.closed).code).toBe("PEER_FAILED");
      }),
      { seed: SEED, numRuns: 1000 },
    );
    expect(failed).toBeGreaterThan(500);
  });
});

describe("ServedConnection", () => {
  const image = madeUpImage(64);
  const conversation = Buffer.concat([
    hello,
    ...[
      encodeRequest({ kind: "find", id: 1, key: image.hash }),
      encodeRequest({ kind: "open", id: 2, hash: image.hash }),
      encodeRequest({ kind: "open", id: 3, hash: image.hash }),
      encodeRequest({ kind: "table", id: 4, image: 1, first: 0, count: 64 }),
      encodeRequest({ kind: "read", id: 5, image: 1, first: 0, count: 64, urgent: false }),
      encodeRequest({ kind: "read", id: 6, image: 2, first: 60, count: 4, urgent: true }),
      encodeRequest({ kind: "working-set", id: 7, image: 2, first: 0, count: 1000 }),
      encodeRequest({ kind: "close", id: 0, image: 1 }),
      encodeRequest({ kind: "read", id: 8, image: 1, first: 0, count: 1, urgent: false }),
    ],
  ]);

  test("answers or closes, whatever is asked, and disposes of all it has opened", async () => {
    let refused = 0;
    await fc.assert(
      fc.asyncProperty(edits, chunks, async (changes, lengths) => {
        const { near, far } = duplexPair();
        let open = 0;
        const troubles: unknown[] = [];
        const connection = new ServedConnection(
          near,
          {
            provider: {
              find: async () => image.hash,
              open: async (hash) => {
                if (hash !== image.hash) return undefined;
                open += 1;
                return image.served({
                  [Symbol.asyncDispose]: async () => {
                    open -= 1;
                  },
                });
              },
            },
            onTrouble: (error) => troubles.push(error),
          },
          { requests: 0, pages: 0, compressedPages: 0, sentBytes: 0 },
        );
        const heard: PeerAnswer[] = [];
        const reader = answerReader((answer) => heard.push(answer));
        far.on("data", (chunk: Buffer) => reader.push(chunk)).on("error", () => far.destroy());
        for (const part of chunksOf(edited(conversation, changes), lengths)) {
          near.push(Buffer.from(part));
          await new Promise((resolve) => setImmediate(resolve));
        }
        for (let turn = 0; turn < 5; turn++) await new Promise((resolve) => setImmediate(resolve));
        far.destroy();
        await connection.closed;
        expect(open).toBe(0);
        for (const error of troubles) expect(["PEER_FAILED", "BAD_ARGUMENT"]).toContain(codeOf(error)!);
        if (troubles.some((error) => codeOf(error) === "PEER_FAILED")) refused += 1;
        const asked = new Set([1, 2, 3, 4, 5, 6, 7, 8]);
        const unasked = heard.filter(({ id }) => !asked.has(id));
        // Of an id that was changed.
        expect(unasked.length).toBeLessThanOrEqual(changes.length * 2);
      }),
      { seed: SEED, numRuns: 1000 },
    );
    expect(refused).toBeGreaterThan(300);
  });
});

describe("RemoteImage", () => {
  const image = madeUpImage(300, 3);
  let directory: TemporaryDirectory;
  beforeAll(() => {
    directory = temporaryDirectory();
  });
  afterAll(() => directory[Symbol.dispose]());

  const behaviour = fc.constantFrom("right", "missing", "part", "fails", "lies", "short", "late");
  const fetching = fc.record({
    page: fc.nat(299),
    count: fc.integer({ min: 1, max: 80 }),
    urgent: fc.boolean(),
    aborted: fc.constantFrom(false, false, false, true),
  });
  const runs = fc.record({
    holders: fc.array(fc.array(behaviour, { minLength: 1, maxLength: 6 }), { minLength: 1, maxLength: 3 }),
    fetches: fc.array(fetching, { minLength: 1, maxLength: 30 }),
    kept: fc.boolean(),
    readAhead: fc.constantFrom(1, 16),
  });

  test("gives the right pages or none, and fetches none twice, whatever holders do", async () => {
    let run = 0;
    await fc.assert(
      fc.asyncProperty(runs, async ({ holders, fetches, kept, readAhead }) => {
        run += 1;
        const scripted = holders.map((script, at) => {
          let turn = 0;
          return new ScriptedHolder(`holder ${at}`, image, async ({ first, count }) => {
            const bytes = image.range(first, count);
            switch (script[turn++ % script.length]) {
              case "missing":
                return undefined;
              case "part":
                return count > 40 ? undefined : bytes;
              case "fails":
                throw new Error("connection refused");
              case "lies":
                return bytes.map((byte) => byte ^ 1);
              case "short":
                return bytes.subarray(PAGE_BYTES);
              case "late":
                await new Promise((resolve) => setImmediate(resolve));
                return bytes;
              default:
                return bytes;
            }
          });
        });
        // One that can be relied on, so that there is an end.
        scripted.push(new ScriptedHolder("good", image));
        const path = join(directory.path, `memory-${run}`);
        await using remote = new RemoteImage({
          ...{ name: "fuzz", table: image.table, holders: scripted, readAhead },
          local: kept ? SparseImage.open(path, image.pages) : undefined,
          memoryBytes: 100 * PAGE_BYTES,
        });
        const target = Buffer.alloc(80 * PAGE_BYTES);
        const check = (page: number, count: number) => {
          const expected = image.bytes.subarray(page * PAGE_BYTES, (page + count) * PAGE_BYTES);
          expect(target.subarray(0, count * PAGE_BYTES).equals(expected)).toBe(true);
        };
        await Promise.all(
          fetches.map(async ({ page, count, urgent, aborted }) => {
            const length = Math.min(count, image.pages - page);
            const abort = new AbortController();
            const fetched = remote.fetch(page, length, { urgent, signal: abort.signal });
            if (aborted) abort.abort();
            try {
              await fetched;
            } catch (error) {
              expect(codeOf(error)).toBe("ABORTED");
              return;
            }
            expect(remote.read(page, length, target, 0)).toBe(true);
            check(page, length);
          }),
        );
        if (!kept) return;
        await remote.prefetch([7, 5, 3]);
        for (let page = 0; page < image.pages; page += 50) {
          expect(remote.read(page, 50, target, 0)).toBe(true);
          check(page, 50);
        }
        expect(remote.complete).toBe(true);
        expect(remote.stats.fetchedPages).toBe(image.filled.length);
      }),
      { seed: SEED, numRuns: 300 },
    );
  });
});
