import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import {
  existsSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { SparseImage } from "../../memserver/image/sparse-image.ts";
import { PAGE_BYTES } from "../../memserver/stream/format.ts";
import { rejection } from "../support/agent-peer.ts";
import { pageOf, pagesOf } from "../support/memserver-pages.ts";
import {
  canMount,
  openDescriptors,
  openedSince,
  smallTmpfs,
  type TemporaryDirectory,
  temporaryDirectory,
} from "../support/vm.ts";

let directory: TemporaryDirectory;
let path: string;

beforeEach(() => {
  directory = temporaryDirectory();
  path = join(directory.path, "image");
});

afterEach(() => directory[Symbol.dispose]());

function read(image: SparseImage, page: number, count = 1): Buffer {
  const target = Buffer.alloc(count * PAGE_BYTES);
  image.read(page, count, target, 0);
  return target;
}

function present(image: SparseImage): number[] {
  return Array.from({ length: image.pages }, (_, page) => page).filter((page) => image.has(page));
}

function failure(action: () => unknown): Promise<Error & { code?: string }> {
  return rejection((async () => action())());
}

describe("SparseImage", () => {
  test("begins without pages", () => {
    using image = SparseImage.open(path, 20);
    expect(image.count).toBe(0);
    expect(present(image)).toEqual([]);
    expect(statSync(path).size).toBe(20 * PAGE_BYTES);
    expect(statSync(`${path}.map`).size).toBe(3);
  });

  test("has the pages that were written, and counts each once", () => {
    using image = SparseImage.open(path, 20);
    image.write(6, pagesOf(6, 4));
    image.write(19, pageOf(19));
    image.write(8, pagesOf(8, 3));
    expect(present(image)).toEqual([6, 7, 8, 9, 10, 19]);
    expect(image.count).toBe(6);
    expect(read(image, 6, 5).equals(pagesOf(6, 5))).toBe(true);
    expect(read(image, 19).equals(pageOf(19))).toBe(true);
    expect(image.has(20)).toBe(false);
    expect(image.has(-1)).toBe(false);
  });

  test("keeps bit n of byte n / 8 for page n", () => {
    using image = SparseImage.open(path, 20);
    image.write(0, pageOf(0));
    image.write(9, pageOf(9));
    image.write(19, pageOf(19));
    expect([...readFileSync(`${path}.map`)]).toEqual([0x01, 0x02, 0x08]);
  });

  test("has them when it is opened again", () => {
    {
      using image = SparseImage.open(path, 20);
      image.write(3, pagesOf(3, 9));
    }
    using image = SparseImage.open(path, 20);
    expect(image.count).toBe(9);
    expect(read(image, 3, 9).equals(pagesOf(3, 9))).toBe(true);
  });

  test("reads into the middle of a buffer", () => {
    using image = SparseImage.open(path, 4);
    image.write(2, pageOf(2));
    const target = Buffer.alloc(PAGE_BYTES + 20, 0xee);
    image.read(2, 1, target, 10);
    expect(target.subarray(10, -10).equals(pageOf(2))).toBe(true);
    expect([...target.subarray(0, 10), ...target.subarray(-10)].every((byte) => byte === 0xee)).toBe(true);
  });

  test("gives no zeros for a page that it has not", async () => {
    using image = SparseImage.open(path, 20);
    image.write(4, pagesOf(4, 2));
    for (const [page, count] of [
      [0, 1],
      [3, 2],
      [4, 3],
      [19, 2],
    ] as const) {
      expect((await failure(() => read(image, page, count))).message).toContain("is not there");
    }
  });

  test("takes nothing but whole pages of the image", async () => {
    const before = openDescriptors();
    {
      using image = SparseImage.open(path, 20);
      for (const bytes of [1, PAGE_BYTES - 1, PAGE_BYTES + 1, 2 * PAGE_BYTES - 8]) {
        expect(await failure(() => image.write(2, Buffer.alloc(bytes, 7)))).toBeInstanceOf(RangeError);
      }
      for (const page of [-1, 0.5, 19, 20, Number.NaN, 2 ** 40]) {
        expect(await failure(() => image.write(page, pagesOf(0, 2)))).toBeInstanceOf(RangeError);
      }
      expect(image.count).toBe(0);
    }
    expect(readFileSync(path).every((byte) => byte === 0)).toBe(true);
    expect(openedSince(before)).toEqual([]);
    using image = SparseImage.open(path, 20);
    expect(image.count).toBe(0);
  });

  test("takes up no disk for what it has not", () => {
    using image = SparseImage.open(path, 16_384);
    image.write(8000, pageOf(8000));
    expect(statSync(path).size).toBe(64 * 1024 * 1024);
    expect(statSync(path).blocks * 512).toBeLessThan(1024 * 1024);
  });
});

describe("SparseImage.open()", () => {
  test.each<[string, (path: string) => void]>([
    ["data of another size", (file) => truncateSync(file, 19 * PAGE_BYTES)],
    ["data that ends in a page", (file) => truncateSync(file, 20 * PAGE_BYTES - 1)],
    ["data that goes on", (file) => truncateSync(file, 20 * PAGE_BYTES + 1)],
    ["a map that is too short", (file) => truncateSync(`${file}.map`, 2)],
    ["a map that is too long", (file) => truncateSync(`${file}.map`, 4)],
  ])("refuses %s", async (_name, damage) => {
    const before = openDescriptors();
    SparseImage.open(path, 20)[Symbol.dispose]();
    damage(path);
    expect((await failure(() => SparseImage.open(path, 20))).code).toBe("IMAGE_CORRUPT");
    expect(openedSince(before)).toEqual([]);
  });

  test("refuses an image of another size and leaves it as it was", async () => {
    {
      using image = SparseImage.open(path, 20);
      image.write(5, pageOf(5));
    }
    for (const pages of [8, 19, 21, 40]) {
      expect((await failure(() => SparseImage.open(path, pages))).code).toBe("IMAGE_CORRUPT");
    }
    using image = SparseImage.open(path, 20);
    expect(present(image)).toEqual([5]);
  });

  test("has no page of a map whose data is gone", () => {
    {
      using image = SparseImage.open(path, 20);
      image.write(0, pagesOf(0, 20));
    }
    // What removed the image was killed half-way.
    rmSync(path);
    {
      using image = SparseImage.open(path, 20);
      expect(present(image)).toEqual([]);
      image.write(3, pageOf(3));
    }
    using image = SparseImage.open(path, 20);
    expect(present(image)).toEqual([3]);
  });

  test("has no page of data whose map is gone", () => {
    {
      using image = SparseImage.open(path, 20);
      image.write(0, pagesOf(0, 20));
    }
    rmSync(`${path}.map`);
    using image = SparseImage.open(path, 20);
    expect(image.count).toBe(0);
  });

  test.each<[string, () => void]>([
    ["before its data had a size", () => writeFileSync(path, "")],
    [
      "before its map had a size",
      () => {
        writeFileSync(path, "");
        truncateSync(path, 20 * PAGE_BYTES);
        writeFileSync(`${path}.map`, "");
      },
    ],
    [
      "before its data had a size, beside a map of before",
      () => {
        writeFileSync(path, "");
        writeFileSync(`${path}.map`, Buffer.alloc(3, 0xff));
      },
    ],
  ])("goes on where making the image was cut off %s", (_name, cut) => {
    cut();
    using image = SparseImage.open(path, 20);
    expect(present(image)).toEqual([]);
    image.write(4, pagesOf(4, 3));
    expect(present(image)).toEqual([4, 5, 6]);
  });

  test("leaves no descriptor open", async () => {
    const before = openDescriptors();
    SparseImage.open(path, 20)[Symbol.dispose]();
    expect((await failure(() => SparseImage.open(join(directory.path, "none/image"), 20))).code).toBe(
      "ENOENT",
    );
    expect(openedSince(before)).toEqual([]);
    expect(existsSync(`${path}.map`)).toBe(true);
  });
});

describe("SparseImage.openWritten()", () => {
  function written(): void {
    using image = SparseImage.open(path, 20);
    image.write(3, pagesOf(3, 9));
  }

  test("reads what was written, and writes nothing", async () => {
    written();
    using image = SparseImage.openWritten(path, 20, 9);
    expect(read(image, 3, 9).equals(pagesOf(3, 9))).toBe(true);
    expect((await failure(() => image.write(12, pageOf(12)))).code).toBe("EBADF");
    expect(image.count).toBe(9);
  });

  test.each<[string, () => void]>([
    ["no data", () => rmSync(path)],
    ["no map", () => rmSync(`${path}.map`)],
    ["empty data", () => truncateSync(path, 0)],
    ["an empty map", () => truncateSync(`${path}.map`, 0)],
    ["a page less", () => writeFileSync(`${path}.map`, Buffer.of(0xf0, 0x0f, 0))],
    ["a page more", () => writeFileSync(`${path}.map`, Buffer.of(0xf8, 0x1f, 0))],
    ["a page less, and one beyond the end", () => writeFileSync(`${path}.map`, Buffer.of(0xf0, 0x0f, 0x80))],
  ])("refuses an image with %s and makes no file", async (_name, damage) => {
    const before = openDescriptors();
    written();
    damage();
    const files = readdirSync(directory.path);
    expect((await failure(() => SparseImage.openWritten(path, 20, 9))).code).toBe("IMAGE_CORRUPT");
    expect(readdirSync(directory.path)).toEqual(files);
    expect(openedSince(before)).toEqual([]);
  });
});

describe.if(canMount)("SparseImage on a full disk", () => {
  test("counts no page of a write that failed", async () => {
    using disk = smallTmpfs(256);
    const file = join(disk.path, "image");
    const pages = 4096;
    const before: number[] = [];
    {
      using image = SparseImage.open(file, pages);
      image.write(0, pagesOf(0, 20));
      image.write(4000, pageOf(4000));
      before.push(...present(image));
      // Some of it has room, so that the system writes less than it was asked to, and only then says so.
      const error = await failure(() => image.write(100, pagesOf(100, 128)));
      expect(error.code).toBe("ENOSPC");
      expect(present(image)).toEqual(before);
      expect(image.count).toBe(21);
      expect(read(image, 0, 20).equals(pagesOf(0, 20))).toBe(true);
      expect(read(image, 4000).equals(pageOf(4000))).toBe(true);
    }
    using image = SparseImage.open(file, pages);
    expect(present(image)).toEqual(before);
  });

  test("has the pages of any write that its data had room for", async () => {
    using disk = smallTmpfs(1024);
    const filler = join(disk.path, "filler");
    const file = join(disk.path, "image");
    // A map of more than one block, of which none is written yet.
    const pages = 3 * 8 * PAGE_BYTES;
    using image = SparseImage.open(file, pages);
    const data = pagesOf(8 * PAGE_BYTES - 1, 2);
    await fillUp(filler);
    expect((await failure(() => image.write(8 * PAGE_BYTES - 1, data))).code).toBe("ENOSPC");
    truncateSync(filler, statSync(filler).size - data.length);
    image.write(8 * PAGE_BYTES - 1, data);
    using again = SparseImage.open(file, pages);
    expect(again.count).toBe(2);
    expect(read(again, 8 * PAGE_BYTES - 1, 2).equals(data)).toBe(true);
  });

  test("can be opened again once there is room, where there was none for its map", async () => {
    using disk = smallTmpfs(64);
    const filler = join(disk.path, "filler");
    const file = join(disk.path, "image");
    await fillUp(filler);
    expect((await failure(() => SparseImage.open(file, 8 * PAGE_BYTES))).code).toBe("ENOSPC");
    rmSync(filler);
    using image = SparseImage.open(file, 8 * PAGE_BYTES);
    expect(image.count).toBe(0);
  });
});

async function fillUp(file: string): Promise<void> {
  for (;;) {
    try {
      writeFileSync(file, Buffer.alloc(PAGE_BYTES), { flag: "a" });
    } catch (error) {
      if (error instanceof Error && "code" in error && error.code === "ENOSPC") return;
      throw error;
    }
  }
}
