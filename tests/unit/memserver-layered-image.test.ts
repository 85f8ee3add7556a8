import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { FlatImage } from "../../memserver/image/flat-image.ts";
import { LayeredImage } from "../../memserver/image/layered-image.ts";
import { scanMemory } from "../../memserver/image/memory-image.ts";
import type { FetchOptions, PageSource } from "../../memserver/image/page-source.ts";
import { PageTable, pageEntry } from "../../memserver/image/page-table.ts";
import { SparseImage } from "../../memserver/image/sparse-image.ts";
import { PAGE_BYTES } from "../../memserver/stream/format.ts";
import { rejection } from "../support/agent-peer.ts";
import { pageOf, pagesOf } from "../support/memserver-pages.ts";
import { openDescriptors, openedSince, type TemporaryDirectory, temporaryDirectory } from "../support/vm.ts";

const PAGES = 12;
const ZEROS = Buffer.alloc(PAGE_BYTES);
let directory: TemporaryDirectory;

beforeEach(() => {
  directory = temporaryDirectory();
});

afterEach(() => directory[Symbol.dispose]());

/** A base whose pages come from elsewhere: it has none of them until they are fetched. */
class FarImage implements PageSource {
  readonly pages = PAGES;
  readonly complete: boolean = false;
  readonly fetched: string[] = [];
  readonly options: (FetchOptions | undefined)[] = [];
  readonly #here = new Set<number>();
  disposed = false;

  isZero(): boolean {
    return false;
  }

  read(page: number, count: number, target: Buffer, at: number): boolean {
    for (let next = page; next < page + count; next++) if (!this.#here.has(next)) return false;
    pagesOf(page, count).copy(target, at);
    return true;
  }

  async fetch(page: number, count: number, options?: FetchOptions): Promise<void> {
    this.fetched.push(`${page}+${count}`);
    this.options.push(options);
    for (let next = page; next < page + count; next++) this.#here.add(next);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.disposed = true;
  }
}

/** A delta that has these pages, as the seed tells them. */
function delta(seed: number, pages: readonly number[], content = pageOf): SparseImage {
  const image = SparseImage.open(join(directory.path, `delta-${seed}`), PAGES);
  for (const page of pages) image.write(page, content(page, seed));
  return image;
}

/** The table of an image whose page n is that of the n-th seed; null stands for zeros. */
function tableOf(seeds: readonly (number | null)[]): PageTable {
  return new PageTable(
    Buffer.concat(seeds.map((seed, page) => pageEntry(seed === null ? ZEROS : pageOf(page, seed)))),
  );
}

function read(image: PageSource, page: number, count: number): Buffer | undefined {
  const target = Buffer.alloc(count * PAGE_BYTES + 16, 0xee);
  if (!image.read(page, count, target, 8)) return undefined;
  const rest = [...target.subarray(0, 8), ...target.subarray(-8)];
  expect(rest.every((byte) => byte === 0xee)).toBe(true);
  return target.subarray(8, -8);
}

function expectPages(image: PageSource, seeds: readonly (number | null)[], table: PageTable): void {
  const whole = read(image, 0, PAGES)!;
  for (const [page, seed] of seeds.entries()) {
    const wanted = seed === null ? ZEROS : pageOf(page, seed);
    expect(whole.subarray(page * PAGE_BYTES, (page + 1) * PAGE_BYTES).equals(wanted)).toBe(true);
    expect(read(image, page, 1)!.equals(wanted)).toBe(true);
    expect(table.matches(page, read(image, page, 1)!)).toBe(true);
    expect(image.isZero(page)).toBe(seed === null);
  }
}

describe("LayeredImage", () => {
  test("shows the latest delta that has a page, and the base where none has", async () => {
    const far = new FarImage();
    const seeds = [0, 0, 1, 1, 2, 2, 2, 0, 3, 3, 0, 1];
    const table = tableOf(seeds);
    await using image = new LayeredImage(table, far, [
      delta(1, [2, 3, 4, 8, 11]),
      delta(2, [4, 5, 6, 8, 9]),
      delta(3, [8, 9]),
    ]);
    await image.fetch(0, PAGES);
    expectPages(image, seeds, table);
  });

  test("asks its base for nothing that a delta has", async () => {
    const far = new FarImage();
    await using image = new LayeredImage(tableOf([0, 0, 1, 1, 0, 0, 0, 1, 0, 0, 0, 0]), far, [
      delta(1, [2, 3, 7]),
    ]);
    expect(read(image, 2, 2)).toBeDefined();
    expect(read(image, 7, 1)).toBeDefined();
    expect(read(image, 1, 2)).toBeUndefined();
    const { signal } = new AbortController();
    await image.fetch(1, 8, { urgent: true, signal });
    expect(far.fetched).toEqual(["1+1", "4+3", "8+1"]);
    expect(far.options).toEqual(Array(3).fill({ urgent: true, signal }));
    expect(read(image, 1, 8)).toBeDefined();
    expect(read(image, 0, 1)).toBeUndefined();
    await image.fetch(2, 2);
    expect(far.fetched).toHaveLength(3);
  });

  test("reads zeros where the table has them, whatever its layers hold, and fetches none", async () => {
    const far = new FarImage();
    const seeds = [null, null, 0, 1, null, null, 0, 0, 0, 0, 0, null];
    const table = tableOf(seeds);
    // Pages 4 and 5 became zero after the delta, the others after the base: no layer need have them.
    await using image = new LayeredImage(table, far, [delta(1, [3, 4, 5])]);
    expect(read(image, 0, 2)!.equals(Buffer.alloc(2 * PAGE_BYTES))).toBe(true);
    await image.fetch(0, PAGES);
    expect(far.fetched).toEqual(["2+1", "6+5"]);
    expectPages(image, seeds, table);
  });

  test("passes on that its base cannot fetch", async () => {
    const far = new FarImage();
    far.fetch = async () => {
      throw new Error("Nobody has it");
    };
    await using image = new LayeredImage(tableOf(Array(PAGES).fill(0)), far, []);
    expect((await rejection(image.fetch(0, 1))).message).toBe("Nobody has it");
    expect(read(image, 0, 1)).toBeUndefined();
  });

  test("refuses layers of another size", async () => {
    const table = tableOf(Array(PAGES - 1).fill(0));
    const base = await rejection((async () => new LayeredImage(table, new FarImage(), []))());
    expect(base.code).toBe("IMAGE_CORRUPT");
    using small = SparseImage.open(join(directory.path, "small"), PAGES - 1);
    const layer = await rejection(
      (async () => new LayeredImage(tableOf(Array(PAGES).fill(0)), new FarImage(), [small]))(),
    );
    expect(layer.code).toBe("IMAGE_CORRUPT");
  });

  test("closes its layers", async () => {
    const before = openDescriptors();
    const far = new FarImage();
    {
      await using _image = new LayeredImage(tableOf(Array(PAGES).fill(0)), far, [delta(1, []), delta(2, [])]);
      expect(openDescriptors()).toHaveLength(before.length + 4);
    }
    expect(openedSince(before)).toEqual([]);
    expect(far.disposed).toBe(true);
  });
});

describe("FlatImage", () => {
  async function flat(content: Buffer): Promise<{ path: string; table: PageTable }> {
    const path = join(directory.path, "flat");
    writeFileSync(path, content);
    return { path, table: await scanMemory(path) };
  }

  test("has all pages of its file", async () => {
    const content = Buffer.concat([pagesOf(0, 2), ZEROS, pageOf(3)]);
    const { path, table } = await flat(content);
    await using image = new FlatImage(path, table);
    await image.fetch();
    expect(read(image, 0, 4)!.equals(content)).toBe(true);
    expect([0, 1, 2, 3].map((page) => image.isZero(page))).toEqual([false, false, true, false]);
  });

  test("is refused when its file is of another size, and leaves no descriptor open", async () => {
    const before = openDescriptors();
    const { path, table } = await flat(pagesOf(0, 3));
    for (const bytes of [0, 2 * PAGE_BYTES, 3 * PAGE_BYTES - 1, 3 * PAGE_BYTES + 1, 4 * PAGE_BYTES]) {
      truncateSync(path, bytes);
      expect((await rejection((async () => new FlatImage(path, table))())).code).toBe("IMAGE_CORRUPT");
    }
    expect(openedSince(before)).toEqual([]);
  });

  test("gives no page that its file has lost", async () => {
    const { path, table } = await flat(pagesOf(0, 3));
    await using image = new FlatImage(path, table);
    truncateSync(path, PAGE_BYTES + 100);
    expect(read(image, 0, 1)!.equals(pageOf(0))).toBe(true);
    for (const [page, count] of [
      [1, 1],
      [2, 1],
      [0, 3],
      [3, 1],
    ] as const) {
      expect((await rejection((async () => read(image, page, count))())).code).toBe("IMAGE_CORRUPT");
    }
  });
});

describe("scanMemory()", () => {
  test("refuses a file that becomes shorter meanwhile, instead of taking zeros for its pages", async () => {
    const path = join(directory.path, "shrinking");
    for (const left of [1024 * 1024, 1024 * 1024 + 100]) {
      writeFileSync(path, pagesOf(0, 1024));
      // It is asked for an abort before each chunk: a moment between two of them.
      let asked = 0;
      const signal = new AbortController().signal;
      Object.defineProperty(signal, "aborted", {
        get: () => {
          if (asked++ === 1) truncateSync(path, left);
          return false;
        },
      });
      expect((await rejection(scanMemory(path, { signal }))).code).toBe("IMAGE_CORRUPT");
    }
  });
});
