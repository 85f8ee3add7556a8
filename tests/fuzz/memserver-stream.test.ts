import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { codeOf } from "../../errors/errors.ts";
import { PAGE_BYTES } from "../../memserver/stream/format.ts";
import { encodeReturnMessage, type ReturnMessage } from "../../memserver/stream/return-path.ts";
import {
  BLOCKS,
  postcopyStream,
  precopyStream,
  readAll,
  readMessages,
  written,
} from "../support/memserver-streams.ts";

const SEED = 20090401;
const streams = [precopyStream(), postcopyStream()] as const;
const chunks = fc.array(fc.integer({ min: 1, max: 6000 }), { minLength: 1, maxLength: 20 });
const smallChunks = fc.array(fc.integer({ min: 1, max: 40 }), { minLength: 1, maxLength: 20 });

const block = fc.constantFrom(...BLOCKS);
const request = fc.tuple(block, fc.nat(1), fc.boolean()).map(
  ([{ name }, page, named]): ReturnMessage => ({
    ...{ kind: "request", at: 0, block: name, named },
    ...{ start: page * PAGE_BYTES, length: PAGE_BYTES },
  }),
);
const bitmap = fc
  .tuple(block, fc.uint8Array({ minLength: 8, maxLength: 8 }))
  .map(([{ name }, bits]): ReturnMessage => ({ kind: "recv-bitmap", at: 0, block: name, bits }));
const pong = fc.nat().map((value): ReturnMessage => ({ kind: "pong", at: 0, value }));
const returnPaths = fc
  .array(fc.oneof(request, bitmap, pong), { minLength: 1, maxLength: 12 })
  .map((messages) => {
    const first: ReturnMessage = {
      kind: "request",
      at: 0,
      block: "ram0",
      start: 0,
      length: PAGE_BYTES,
      named: true,
    };
    return Buffer.concat([first, ...messages].map(encodeReturnMessage));
  });

/** Changed bytes; mostly where there is no page's content. */
function mutated(bytes: Buffer, edits: readonly (readonly [number, number])[]): Buffer {
  const copy = Buffer.from(bytes);
  for (const [at, value] of edits) copy[at % copy.length] = value;
  return copy;
}

/**
 * The two ways in which bytes may be taken: refused with an offset that is in them, or read so that
 * writing gives them back.
 */
function refusesOrReads(bytes: Uint8Array, again: () => Buffer): boolean {
  try {
    return again().equals(bytes);
  } catch (error) {
    if (codeOf(error) !== "STREAM_INVALID") throw error;
    const offset = Number(/ at offset (\d+)$/.exec((error as Error).message)?.[1]);
    return offset >= 0 && offset <= bytes.length;
  }
}

/** Positions from both ends, where the structure is, and anywhere. */
const position = fc.oneof(
  fc.nat(400),
  fc.nat(300).map((back) => 2 ** 30 - back),
  fc.nat(20_000),
);
const value = fc.oneof(fc.constantFrom(0, 1, 2, 3, 4, 6, 8, 0x10, 0x20, 0x7e, 0xff), fc.nat(255));
const edits = fc.array(fc.tuple(position, value), { minLength: 1, maxLength: 3 });

function edited(bytes: Buffer, changes: readonly (readonly [number, number])[]): Buffer {
  const last = 2 ** 30;
  return mutated(
    bytes,
    changes.map(([at, to]) => [at > last - 1000 ? Math.max(bytes.length - 1 - (last - at), 0) : at, to]),
  );
}

describe("StreamReader", () => {
  test("reads the same items from any chunks", () => {
    for (const stream of streams) {
      const whole = readAll(stream);
      fc.assert(
        fc.property(fc.oneof(chunks, smallChunks), (lengths) => {
          expect(written(readAll(stream, lengths)).equals(stream)).toBe(true);
          expect(readAll(stream, lengths).map(({ kind, at }) => `${kind}@${at}`)).toEqual(
            whole.map(({ kind, at }) => `${kind}@${at}`),
          );
        }),
        { seed: SEED, numRuns: 100 },
      );
    }
  });

  test("refuses or reads a stream with some bytes changed", () => {
    for (const stream of streams) {
      let refused = 0;
      fc.assert(
        fc.property(edits, chunks, (changes, lengths) => {
          const bytes = edited(stream, changes);
          const again = () => {
            refused++;
            const result = written(readAll(bytes, lengths));
            refused--;
            return result;
          };
          return refusesOrReads(bytes, again);
        }),
        { seed: SEED, numRuns: 4000 },
      );
      expect(refused).toBeGreaterThan(1000);
    }
  });

  test("refuses every stream that ends early, and some bytes that were left out", () => {
    for (const stream of streams) {
      const complete = readAll(stream).find(({ kind }) => kind === "eof")!.at + 1;
      fc.assert(
        fc.property(fc.nat(stream.length - 1), fc.nat(20), chunks, (cut, gap, lengths) => {
          const short = stream.subarray(0, cut);
          // One that lacks its description only is complete.
          if (cut !== complete) {
            expect(() => readAll(short, lengths)).toThrow(
              expect.objectContaining({ code: "STREAM_INVALID" }),
            );
          }
          const torn = Buffer.concat([short, stream.subarray(cut + gap)]);
          return refusesOrReads(torn, () => written(readAll(torn, lengths)));
        }),
        { seed: SEED, numRuns: 1000 },
      );
    }
  });

  test("refuses or reads any bytes behind a configuration", () => {
    const head = streams[0].subarray(0, 24);
    const byte = fc.constantFrom(
      0,
      1,
      2,
      3,
      4,
      5,
      6,
      7,
      8,
      9,
      10,
      11,
      0x10,
      0x20,
      0x72,
      0x7b,
      0x7d,
      0x7e,
      0xff,
    );
    fc.assert(
      fc.property(fc.array(byte, { maxLength: 60 }), smallChunks, (rest, lengths) => {
        const bytes = Buffer.concat([head, Buffer.from(rest)]);
        return refusesOrReads(bytes, () => written(readAll(bytes, lengths)));
      }),
      { seed: SEED, numRuns: 20_000 },
    );
    expect(readAll(streams[0]).length).toBeGreaterThan(10);
  });
});

describe("ReturnPathReader", () => {
  test("reads what can be written from any chunks, and writes it again", () => {
    fc.assert(
      fc.property(returnPaths, smallChunks, (bytes, lengths) => {
        const messages = readMessages(bytes, lengths);
        expect(messages).toEqual(readMessages(bytes));
        expect(Buffer.concat(messages.map(encodeReturnMessage)).equals(bytes)).toBe(true);
      }),
      { seed: SEED, numRuns: 1000 },
    );
  });

  test("refuses or reads one with some bytes changed, or cut off", () => {
    fc.assert(
      fc.property(returnPaths, edits, fc.nat(300), smallChunks, (good, changes, cut, lengths) => {
        const bytes = edited(good, changes);
        const again = (some: Buffer) => () =>
          Buffer.concat(readMessages(some, lengths).map(encodeReturnMessage));
        const short = bytes.subarray(0, cut);
        return refusesOrReads(bytes, again(bytes)) && refusesOrReads(short, again(short));
      }),
      { seed: SEED, numRuns: 5000 },
    );
    expect(() => readMessages(Buffer.alloc(4))).toThrow("unknown message 0 at offset 0");
  });
});
