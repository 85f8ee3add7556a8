import { describe, expect, test } from "bun:test";
import { rmSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { FlatImage } from "../../memserver/image/flat-image.ts";
import { LayeredImage } from "../../memserver/image/layered-image.ts";
import { scanMemory } from "../../memserver/image/memory-image.ts";
import { PageTable, pageEntry } from "../../memserver/image/page-table.ts";
import { SparseImage } from "../../memserver/image/sparse-image.ts";
import { PAGE_BYTES } from "../../memserver/stream/format.ts";
import { rejection } from "../support/agent-peer.ts";
import { pageOf } from "../support/memserver-pages.ts";
import { temporaryDirectory } from "../support/vm.ts";

const SEED = 20090404;
const MAX_PAGES = 40;
const ZEROS = Buffer.alloc(PAGE_BYTES);

/** A page that tests write: zeros, or told by a number. */
const content = fc.oneof({ weight: 1, arbitrary: fc.constant(null) }, { weight: 3, arbitrary: fc.nat(1000) });
type Content = number | null;

function bytesOf(value: Content): Buffer {
  return value === null ? ZEROS : pageOf(value);
}

function tableOf(model: readonly Content[]): PageTable {
  return new PageTable(Buffer.concat(model.map((value) => pageEntry(bytesOf(value)))));
}

/** Adjacent pages of an image of so many. */
function runIn(pages: number, [from, length]: readonly [number, number]): { page: number; count: number } {
  const page = from % pages;
  return { page, count: 1 + (length % (pages - page)) };
}
const run = fc.tuple(fc.nat(), fc.nat());

describe("LayeredImage", () => {
  test("reads back any base with any deltas, page for page", async () => {
    const layers = fc.integer({ min: 1, max: MAX_PAGES }).chain((pages) =>
      fc.record({
        base: fc.array(content, { minLength: pages, maxLength: pages }),
        deltas: fc.array(
          fc
            .array(fc.tuple(fc.nat(pages - 1), content), { maxLength: 12 })
            .map((changes) => new Map(changes)),
          { maxLength: 4 },
        ),
        // A delta need not have pages that became zero: the table knows them.
        keepsZeros: fc.boolean(),
        reads: fc.array(run, { minLength: 1, maxLength: 8 }),
      }),
    );
    let number = 0;
    await fc.assert(
      fc.asyncProperty(layers, async ({ base, deltas, keepsZeros, reads }) => {
        using directory = temporaryDirectory();
        const path = join(directory.path, `base-${number++}`);
        writeFileSync(path, Buffer.concat(base.map(bytesOf)));
        const model = [...base];
        const images = deltas.map((changes, at) => {
          const file = join(directory.path, `delta-${at}`);
          let count = 0;
          {
            using image = SparseImage.open(file, base.length);
            for (const [page, value] of changes) {
              model[page] = value;
              if (value !== null || keepsZeros) image.write(page, bytesOf(value));
            }
            count = image.count;
          }
          return SparseImage.openWritten(file, base.length, count);
        });
        const table = tableOf(model);
        await using image = new LayeredImage(table, new FlatImage(path, await scanMemory(path)), images);
        for (const { page, count } of reads.map((one) => runIn(base.length, one))) {
          const target = Buffer.alloc(count * PAGE_BYTES, 0xee);
          expect(image.read(page, count, target, 0)).toBe(true);
          for (let at = 0; at < count; at++) {
            const read = target.subarray(at * PAGE_BYTES, (at + 1) * PAGE_BYTES);
            expect(read.equals(bytesOf(model[page + at]!))).toBe(true);
            expect(table.matches(page + at, read)).toBe(true);
            expect(image.isZero(page + at)).toBe(model[page + at] === null);
          }
        }
      }),
      { seed: SEED, numRuns: 150 },
    );
  }, 120_000);
});

describe("SparseImage", () => {
  const step = fc.oneof(
    { weight: 6, arbitrary: fc.record({ do: fc.constant("write" as const), run }) },
    { weight: 4, arbitrary: fc.record({ do: fc.constant("read" as const), run }) },
    { weight: 2, arbitrary: fc.record({ do: fc.constant("reopen" as const) }) },
    { weight: 1, arbitrary: fc.record({ do: fc.constant("lose" as const), map: fc.boolean() }) },
  );

  test("has what the model has after any writes, reopenings and losses of a file", async () => {
    const steps = fc.array(step, { maxLength: 40, size: "max" });
    await fc.assert(
      fc.asyncProperty(fc.integer({ min: 1, max: MAX_PAGES }), steps, async (pages, todo) => {
        using directory = temporaryDirectory();
        const path = join(directory.path, "image");
        const model = new Set<number>();
        let image = SparseImage.open(path, pages);
        try {
          for (const one of todo) {
            if (one.do === "write") {
              const { page, count } = runIn(pages, one.run);
              const numbers = Array.from({ length: count }, (_, at) => page + at);
              image.write(page, Buffer.concat(numbers.map((next) => pageOf(next))));
              for (const next of numbers) model.add(next);
            } else if (one.do === "read") {
              await checkRead(image, model, runIn(pages, one.run));
            } else {
              image[Symbol.dispose]();
              if (one.do === "lose") {
                rmSync(one.map ? `${path}.map` : path);
                model.clear();
              }
              image = SparseImage.open(path, pages);
            }
            expect(image.count).toBe(model.size);
            for (let page = 0; page < pages; page++) expect(image.has(page)).toBe(model.has(page));
          }
        } finally {
          image[Symbol.dispose]();
        }
      }),
      { seed: SEED, numRuns: 150 },
    );
  }, 120_000);

  test("is refused with files of any other size, and works on once they are right again", async () => {
    const sizes = fc.record({
      pages: fc.integer({ min: 1, max: 200 }),
      data: fc.integer({ min: -5000, max: 5000 }),
      map: fc.integer({ min: -3, max: 3 }),
    });
    await fc.assert(
      fc.asyncProperty(sizes, async ({ pages, data, map }) => {
        using directory = temporaryDirectory();
        const path = join(directory.path, "image");
        {
          using image = SparseImage.open(path, pages);
          image.write(0, pageOf(0));
        }
        const right = { data: pages * PAGE_BYTES, map: Math.ceil(pages / 8) };
        const wrong = { data: right.data + data, map: right.map + map };
        // Empty files are those of an image whose making was cut off.
        fc.pre(wrong.data > 0 && wrong.map > 0 && (data !== 0 || map !== 0));
        truncateSync(path, wrong.data);
        truncateSync(`${path}.map`, wrong.map);
        expect((await rejection((async () => SparseImage.open(path, pages))())).code).toBe("IMAGE_CORRUPT");
        const written = rejection((async () => SparseImage.openWritten(path, pages, 1))());
        expect((await written).code).toBe("IMAGE_CORRUPT");
        if (data < 0 || map < 0) return;
        truncateSync(path, right.data);
        truncateSync(`${path}.map`, right.map);
        using image = SparseImage.open(path, pages);
        expect(image.count).toBe(1);
      }),
      { seed: SEED, numRuns: 200 },
    );
  }, 60_000);
});

async function checkRead(
  image: SparseImage,
  model: ReadonlySet<number>,
  { page, count }: { page: number; count: number },
): Promise<void> {
  const target = Buffer.alloc(count * PAGE_BYTES);
  const numbers = Array.from({ length: count }, (_, at) => page + at);
  if (!numbers.every((next) => model.has(next))) {
    const error = await rejection((async () => image.read(page, count, target, 0))());
    expect(error).toBeInstanceOf(RangeError);
    return;
  }
  image.read(page, count, target, 0);
  expect(target.equals(Buffer.concat(numbers.map((next) => pageOf(next))))).toBe(true);
}

describe("PageTable", () => {
  test("matches no page of which one bit is another", () => {
    const bit = fc.integer({ min: 0, max: PAGE_BYTES * 8 - 1 });
    fc.assert(
      fc.property(content, fc.nat(3), bit, (value, page, at) => {
        const table = tableOf([1, 2, 3, 4].map((other, index) => (index === page ? value : other)));
        const data = Buffer.from(bytesOf(value));
        expect(table.matches(page, data)).toBe(true);
        data[at >> 3]! ^= 1 << (at & 7);
        expect(table.matches(page, data)).toBe(false);
      }),
      { seed: SEED, numRuns: 2000 },
    );
  });

  test("matches no page where one bit of its entry is another", () => {
    fc.assert(
      fc.property(content, fc.integer({ min: 0, max: 127 }), (value, at) => {
        const entry = pageEntry(bytesOf(value));
        entry[at >> 3]! ^= 1 << (at & 7);
        const table = new PageTable(entry);
        expect(table.matches(0, bytesOf(value))).toBe(false);
        expect(table.isZero(0)).toBe(false);
        expect(table.root).not.toBe(tableOf([value]).root);
      }),
      { seed: SEED, numRuns: 500 },
    );
  });
});
