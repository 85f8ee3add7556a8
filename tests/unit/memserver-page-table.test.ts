import { describe, expect, test } from "bun:test";
import { createHash } from "node:crypto";
import { ENTRY_BYTES, isZeroPage, PageTable, pageEntry } from "../../memserver/image/page-table.ts";
import { PAGE_BYTES } from "../../memserver/stream/format.ts";
import { rejection } from "../support/agent-peer.ts";
import { pageOf } from "../support/memserver-pages.ts";

const ZEROS = Buffer.alloc(PAGE_BYTES);

/** The entry as it is defined. */
function definition(page: Buffer): Buffer {
  return createHash("sha256").update(page).digest().subarray(0, 16);
}

/** Pages 0 and 2 have bytes, page 1 has none. */
const table = new PageTable(Buffer.concat([pageEntry(pageOf(0)), pageEntry(ZEROS), pageEntry(pageOf(2))]));

describe("pageEntry()", () => {
  test("is the first half of SHA-256", () => {
    expect(pageEntry(pageOf(7)).equals(definition(pageOf(7)))).toBe(true);
  });

  test("is zeros for a page of zeros", () => {
    expect(pageEntry(ZEROS).equals(Buffer.alloc(ENTRY_BYTES))).toBe(true);
  });

  test("takes the last page of an odd size as if zeros followed", () => {
    const whole = Buffer.alloc(PAGE_BYTES);
    whole.write("end of memory");
    expect(pageEntry(Buffer.from("end of memory")).equals(definition(whole))).toBe(true);
    expect(pageEntry(Buffer.alloc(100)).equals(Buffer.alloc(ENTRY_BYTES))).toBe(true);
  });
});

describe("isZeroPage()", () => {
  test("sees one bit anywhere", () => {
    expect(isZeroPage(ZEROS)).toBe(true);
    for (const at of [0, 1, 7, 8, 2047, 4088, 4095]) {
      const page = Buffer.alloc(PAGE_BYTES);
      page[at] = 1;
      expect(isZeroPage(page)).toBe(false);
    }
  });
});

describe("PageTable", () => {
  test("knows zero pages", () => {
    expect(table.pages).toBe(3);
    expect([0, 1, 2].map((page) => table.isZero(page))).toEqual([false, true, false]);
  });

  test("takes an entry for zero only if all of it is", () => {
    for (let at = 0; at < ENTRY_BYTES; at++) {
      const entries = Buffer.alloc(3 * ENTRY_BYTES);
      entries[ENTRY_BYTES + at] = 0x80;
      const changed = new PageTable(entries);
      expect([0, 1, 2].map((page) => changed.isZero(page))).toEqual([true, false, true]);
    }
  });

  test("knows no page beyond its end, not even as zeros", () => {
    for (const page of [3, 4, -1, Number.NaN, 2 ** 40]) {
      expect(table.isZero(page)).toBe(false);
      expect(table.matches(page, ZEROS)).toBe(false);
      expect(table.matches(page, pageOf(0))).toBe(false);
    }
  });

  test("matches the pages that it was made of", () => {
    expect(table.matches(0, pageOf(0))).toBe(true);
    expect(table.matches(1, ZEROS)).toBe(true);
    expect(table.matches(0, pageOf(2))).toBe(false);
    expect(table.matches(0, ZEROS)).toBe(false);
    expect(table.matches(1, pageOf(0))).toBe(false);
  });

  test("matches nothing that is not a whole page", () => {
    const ending = Buffer.alloc(PAGE_BYTES);
    ending.write("the rest is zeros");
    const one = new PageTable(Buffer.concat([pageEntry(ending), pageEntry(ZEROS)]));
    expect(one.matches(0, ending)).toBe(true);
    // Else a page that was cut on its way would count as good, and so would no bytes at all.
    expect(one.matches(0, ending.subarray(0, 17))).toBe(false);
    expect(one.matches(0, ending.subarray(0, -1))).toBe(false);
    expect(one.matches(1, Buffer.alloc(0))).toBe(false);
    expect(one.matches(0, Buffer.concat([ending, Buffer.alloc(1)]))).toBe(false);
    expect(one.matches(1, Buffer.alloc(2 * PAGE_BYTES))).toBe(false);
  });

  test("keeps entries of its own, from any offset", () => {
    const entries = Buffer.concat([Buffer.alloc(3), pageEntry(pageOf(0)), pageEntry(ZEROS)]);
    const kept = new PageTable(entries.subarray(3));
    entries.fill(0xff);
    expect(kept.matches(0, pageOf(0))).toBe(true);
    expect(kept.isZero(1)).toBe(true);
  });

  test("has the hash of its entries for a root", () => {
    expect(table.root).toBe(createHash("sha256").update(table.bytes).digest("hex"));
    const swapped = new PageTable(
      Buffer.concat([pageEntry(pageOf(2)), pageEntry(ZEROS), pageEntry(pageOf(0))]),
    );
    expect(swapped.root).not.toBe(table.root);
    expect(new PageTable(Buffer.alloc(ENTRY_BYTES)).root).not.toBe(new PageTable(Buffer.alloc(0)).root);
  });

  test.each([1, 15, 17, 33])("is not read from %d bytes", async (bytes) => {
    const error = await rejection((async () => new PageTable(Buffer.alloc(bytes)))());
    expect(error.code).toBe("IMAGE_CORRUPT");
    expect(error.message).toContain(`${bytes} bytes`);
  });
});
