import { describe, expect, test } from "bun:test";
import { MAX_BLOCKS, MAX_DEVICE_BYTES, PAGE_BYTES, type PageItem } from "../../memserver/stream/format.ts";
import { StreamReader } from "../../memserver/stream/reader.ts";
import { StreamWriter } from "../../memserver/stream/writer.ts";
import {
  BLOCKS,
  DEVICES,
  postcopyStream,
  precopyStream,
  readAll,
  written,
} from "../support/memserver-streams.ts";

const HEAD = "5145564d00000003" + "07 00000001 6d";
const ADVISE = "08 0003 0010 0000000000001000 0000000000001000";
/** One block "r" of two pages. */
const BLOCK_LIST =
  "01 00000002 03 72616d 00000000 00000004 0000000000002004 01 72 0000000000002000 0000000000000010 7e 00000002";
const PART = "02 00000002";
const SECTION_END = "0000000000000010 7e 00000002";
const END = `03 00000002 ${SECTION_END}`;
const ZERO = "0000000000000002 01 72 00";
const FULL = "04 00000009 01 64 00000000 00000001 aabb 7e 00000009";
const LISTEN = "08 0004 0000";
const RUN = "08 0005 0000";

function bytes(...hex: string[]): Buffer {
  return Buffer.from(hex.join("").replaceAll(" ", ""), "hex");
}

function capabilities(name: string): string {
  const id = Buffer.from("configuration/capabilities").toString("hex");
  const length = name.length.toString(16).padStart(2, "0");
  return `05 1a ${id} 00000001 00000001 ${length} ${Buffer.from(name).toString("hex")}`;
}

function packaged(...hex: string[]): string {
  const inner = bytes(...hex);
  return `08 0007 0004 ${inner.length.toString(16).padStart(8, "0")} ${inner.toString("hex")}`;
}

describe("StreamReader", () => {
  test("reads a precopy stream by the byte", () => {
    const stream = bytes(
      HEAD,
      BLOCK_LIST,
      PART,
      ZERO,
      SECTION_END,
      "08 000b 0000",
      END,
      FULL,
      "00 06 00000002 7b7d",
    );
    expect(readAll(stream, [1])).toEqual([
      { kind: "header", at: 0 },
      { kind: "configuration", at: 8, machine: "m", capabilities: [] },
      { kind: "blocks", at: 14, sectionId: 2, blocks: [{ name: "r", bytes: 8192 }] },
      { kind: "part", at: 62, sectionId: 2 },
      { kind: "zero", at: 67, block: "r", offset: 0, named: true },
      { kind: "section-end", at: 78, sectionId: 2 },
      { kind: "switchover-start", at: 91 },
      { kind: "end", at: 96, sectionId: 2 },
      { kind: "section-end", at: 101, sectionId: 2 },
      { kind: "devices", at: 114, bytes: bytes(FULL) },
      { kind: "eof", at: 136 },
      { kind: "description", at: 137, bytes: Buffer.from("{}") },
    ]);
    expect(written(readAll(stream)).equals(stream)).toBe(true);
  });

  test("reads a postcopy stream", () => {
    const discard = "08 0006 0014 00 01 72 00 0000000000001000 0000000000001000";
    const inside = packaged(LISTEN, FULL, "08 0002 0004 00000003", RUN);
    const before = [HEAD, "08 0001 0000", "08 0002 0004 00000001", ADVISE, BLOCK_LIST, discard];
    const page = `0000000000001028${"5a".repeat(PAGE_BYTES)}`;
    const stream = bytes(...before, inside, PART, ZERO, page, SECTION_END, END, "00");
    const items = readAll(stream, [4000]);
    expect(items.slice(2)).toMatchObject([
      { kind: "open-return-path", at: 14 },
      { kind: "ping", value: 1 },
      { kind: "advise" },
      { kind: "blocks" },
      { kind: "discard", block: "r", ranges: [{ start: 4096, length: 4096 }] },
      {
        kind: "package",
        items: [
          { kind: "listen" },
          { kind: "devices", bytes: bytes(FULL) },
          { kind: "ping", value: 3 },
          { kind: "run" },
        ],
      },
      { kind: "part" },
      { kind: "zero" },
      { kind: "page", block: "r", offset: 4096, named: false, data: Buffer.alloc(PAGE_BYTES, 0x5a) },
      { kind: "section-end" },
      { kind: "end" },
      { kind: "section-end" },
      { kind: "eof", at: stream.length - 1 },
    ]);
    expect(written(items).equals(stream)).toBe(true);
  });

  test("reads capabilities, and the addresses that one of them adds", () => {
    const list = BLOCK_LIST.replace("72 0000000000002000", "72 0000000000002000 0000000100000000");
    const stream = bytes(HEAD, capabilities("x-ignore-shared"), list, END, "00");
    const items = readAll(stream, [3]);
    expect(items[1]).toMatchObject({ capabilities: ["x-ignore-shared"] });
    expect(items[2]).toMatchObject({ blocks: [{ name: "r", bytes: 8192, address: 0x1_0000_0000n }] });
    expect(written(items).equals(stream)).toBe(true);
  });

  test("reads what recovers an interrupted stream", () => {
    const stream = bytes(
      "08 000a 0005 04 72616d30 08 0009 0000",
      "02 00000001 0000000000000010 7e 00000001",
      "03 00000001 0000000000000010 7e 00000001 00",
    );
    const items = readAll(stream, [], { recovers: { sectionId: 1, blocks: BLOCKS } });
    expect(items.map(({ kind }) => kind)).toEqual([
      "recv-bitmap",
      "resume",
      "part",
      "section-end",
      "end",
      "section-end",
      "eof",
    ]);
    expect(written(items).equals(stream)).toBe(true);
  });

  test("gives a page that came in one chunk without a copy", () => {
    const chunk = precopyStream();
    const pages: PageItem[] = [];
    const reader = new StreamReader((item) => item.kind === "page" && pages.push(item));
    reader.push(chunk);
    expect(pages.map(({ data }) => data.buffer === chunk.buffer)).toEqual([true, true]);
  });

  const open = [HEAD, BLOCK_LIST];
  const records = [...open, PART];
  test.each<[string, number, string[]]>([
    ["magic is not QEVM", 0, ["5145564e00000003"]],
    ["version 4 is not 3", 4, ["5145564d00000004"]],
    ["section 1 before configuration", 8, ["5145564d00000003 01"]],
    ["machine name has 0 bytes", 8, ["5145564d00000003 07 00000000"]],
    ["machine name has 4294967295 bytes", 8, ["5145564d00000003 07 ffffffff"]],
    ["unexpected subsection", 14, [HEAD, "05 01 78 00000001 00000001"]],
    ["unexpected subsection", 66, [HEAD, capabilities("x-ignore-shared"), capabilities("x-ignore-shared")]],
    ['"mapped-ram" is not supported', 14, [HEAD, capabilities("mapped-ram")]],
    ["0 capabilities", 14, [HEAD, capabilities("").replace("00000001 00000001 00", "00000001 00000000")]],
    [
      "capabilities of version 2",
      14,
      [HEAD, capabilities("").replace("00000001 00000001", "00000002 00000001")],
    ],
    ['"" is no name', 50, [HEAD, capabilities("")]],
    ["unknown section type 9", 14, [HEAD, "09"]],
    ["unknown section type 126", 14, [HEAD, "7e"]],
    ["unknown section", 14, [HEAD, "01 00000002 03 72616e 00000000 00000004 0000000000002004"]],
    ["version 3", 14, [HEAD, "01 00000002 03 72616d 00000000 00000003 0000000000002004"]],
    ["without a block list", 31, [HEAD, "01 00000002 03 72616d 00000000 00000004 0000000000002008"]],
    ["empty block list", 14, [HEAD, "01 00000002 03 72616d 00000000 00000004 0000000000000004"]],
    ["cannot have 16384 bytes", 39, [HEAD, BLOCK_LIST.replace("72 0000000000002000", "72 0000000000004000")]],
    ["cannot have 4095 bytes", 39, [HEAD, BLOCK_LIST.replace("72 0000000000002000", "72 0000000000000fff")]],
    [
      "listed twice",
      49,
      [HEAD, BLOCK_LIST.replace("72 0000000000002000", "72 0000000000001000 01 72 0000000000001000")],
    ],
    ["without its footer", 57, [HEAD, BLOCK_LIST.replace("7e 00000002", "7e 00000003")]],
    ["second RAM section", 62, [...open, BLOCK_LIST]],
    ["section 3 is not open", 62, [...open, "02 00000003"]],
    ["section 2 is not open", 80, [...open, END, PART]],
    ["EOF before the end of the RAM section", 62, [...open, "00"]],
    ["device state out of its place", 62, [...open, FULL]],
    ["unknown command 8", 62, [...open, "08 0008 0000"]],
    ["command 2 has 5 bytes instead of 4", 62, [...open, "08 0002 0005"]],
    ["command 4 outside of a package", 62, [...open, LISTEN]],
    ["page sizes are 2101248 and 4096", 14, [HEAD, ADVISE.replace("00001000", "00201000")]],
    ["malformed discard", 62, [...open, "08 0006 0004 00 01 72 00"]],
    ["malformed discard", 62, [...open, "08 0006 0000"]],
    ["malformed discard", 62, [...open, "08 0006 0014 01 01 72 00 0000000000001000 0000000000001000"]],
    ["was not listed", 62, [...open, "08 0006 0014 00 01 73 00 0000000000001000 0000000000001000"]],
    ["outside of block", 62, [...open, "08 0006 0014 00 01 72 00 0000000000001000 0000000000002000"]],
    ["not made of pages", 62, [...open, "08 0006 0014 00 01 72 00 0000000000001000 0000000000000001"]],
    ["malformed bitmap name", 62, [...open, "08 000a 0002 02 72"]],
    ["package of 4294967295 bytes", 62, [...open, "08 0007 0004 ffffffff"]],
    ["package of only 5 bytes", 71, [...open, packaged(LISTEN)]],
    ["package out of its place", 14, [HEAD, packaged(LISTEN, FULL, RUN)]],
    ["package without LISTEN", 71, [...open, packaged(RUN, FULL, RUN)]],
    ["package without RUN", 93, [...open, packaged(LISTEN, FULL)]],
    ["no device state", 76, [...open, packaged(LISTEN, RUN)]],
    ["ends without a footer", 98, [...open, packaged(LISTEN, FULL.replace("7e", "7f"), RUN)]],
    ["continues no block", 67, [...records, "0000000000000022 00"]],
    ["was not listed", 67, [...records, "0000000000000002 01 73 00"]],
    ["outside of block", 67, [...records, "0000000000002002 01 72 00"]],
    ["beyond 2^53", 67, [...records, "ff00000000000002 01 72 00"]],
    ["filled with 1 instead of 0", 67, [...records, "0000000000000002 01 72 01"]],
    ["flags 0x40", 67, [...records, "0000000000000040"]],
    ["flags 0x0", 67, [...records, "0000000000000000"]],
    ["flags 0xa", 67, [...records, "000000000000000a"]],
    ["end of a section with an offset", 67, [...records, "0000000000001010 7e 00000002"]],
    ["section type 1 after EOF", 81, [...open, END, "00 01"]],
    ["description of 4294967295 bytes", 81, [...open, END, "00 06 ffffffff"]],
    ["description is no JSON", 81, [...open, END, "00 06 00000002 7b7e"]],
    ["bytes after the description", 88, [...open, END, "00 06 00000002 7b7d 00"]],
    ["stream ends too early", 13, [HEAD.slice(0, -3)]],
    ["stream ends too early", 62, open],
    ["stream ends too early", 70, [...records, "000000"]],
    ["stream ends in the device state", 102, [...open, END, FULL]],
  ])("refuses with '%s' at %d", (reason, at, hex) => {
    const read = (lengths: number[]) => () => readAll(bytes(...hex), lengths);
    for (const lengths of [[], [1], [7]]) {
      expect(read(lengths)).toThrow(expect.objectContaining({ code: "STREAM_INVALID" }));
      expect(read(lengths)).toThrow(reason);
      expect(read(lengths)).toThrow(new RegExp(`at offset ${at}$`));
    }
  });

  test("fails again with the same error, whatever comes", () => {
    const reader = new StreamReader(() => undefined);
    expect(() => reader.push(Buffer.alloc(8))).toThrow("offset 0");
    expect(() => reader.push(precopyStream())).toThrow("offset 0");
  });

  test("is not misled by device state that looks like what follows it", () => {
    const description = "00 06 00000002 7b7d";
    const ping = "08 0002 0004 00000003";
    const inner = `04 00000009 01 64 00000000 00000001 ${description} ${ping} ${RUN} 7e 00000009`;
    for (const tail of ["00", description]) {
      const items = readAll(bytes(HEAD, inner, inner, tail), [5]);
      expect(items[2]).toEqual({ kind: "devices", at: 14, bytes: bytes(inner, inner) });
      expect(written(items).equals(bytes(HEAD, inner, inner, tail))).toBe(true);
    }
    const items = readAll(bytes(HEAD, BLOCK_LIST, packaged(LISTEN, inner, RUN), END, "00"));
    const packageItem = items.find((item) => item.kind === "package");
    expect(packageItem?.items.map(({ kind }) => kind)).toEqual(["listen", "devices", "run"]);
    expect(packageItem?.items[1]).toMatchObject({ bytes: bytes(inner) });
  });

  test("refuses more blocks than a machine can have", () => {
    const blocks = Array.from({ length: MAX_BLOCKS + 1 }, (_, n) => ({ name: `b${n}`, bytes: PAGE_BYTES }));
    const stream = (some: typeof blocks) =>
      new StreamWriter().header().configuration("m").blocks(1, some).end(1).sectionEnd(1).eof().take();
    expect(readAll(stream(blocks.slice(1)))).toHaveLength(6);
    expect(() => readAll(stream(blocks))).toThrow(`more than ${MAX_BLOCKS} blocks`);
  });

  test("holds what has come, and not what was announced", () => {
    const reader = new StreamReader(() => undefined);
    const allocated: number[] = [];
    const { allocUnsafe } = Buffer;
    Buffer.allocUnsafe = (size) => {
      allocated.push(size);
      return allocUnsafe(size);
    };
    try {
      reader.push(bytes(HEAD, BLOCK_LIST, "08 0007 0004 01000000"));
      reader.push(Buffer.alloc(300_000));
      expect(allocated).toEqual([300_000]);
    } finally {
      Buffer.allocUnsafe = allocUnsafe;
    }
    expect(() => reader.end()).toThrow("ends too early");
  });

  test("takes no more device state than a machine can have", () => {
    const reader = new StreamReader(() => undefined);
    reader.push(bytes(HEAD, FULL));
    const chunk = Buffer.alloc(1024 * 1024, 1);
    for (let taken = chunk.length; taken < MAX_DEVICE_BYTES; taken += chunk.length) reader.push(chunk);
    expect(() => reader.push(chunk)).toThrow(`more than ${MAX_DEVICE_BYTES} bytes`);
  });
});

describe("StreamWriter", () => {
  test("names a block once, and writes a run of pages with CONTINUE", () => {
    const writer = new StreamWriter()
      .pages("r", 0, Buffer.alloc(2 * PAGE_BYTES, 1))
      .zero("r", 8192)
      .zero("s", 0);
    const page = "01".repeat(PAGE_BYTES);
    const expected = [`0000000000000008 01 72 ${page}`, `0000000000001028 ${page}`, "0000000000002022 00"];
    expect(writer.take().equals(bytes(...expected, "0000000000000002 01 73 00"))).toBe(true);
    expect(writer.length).toBe(0);
    expect(writer.zero("s", 0x1_0000_0000).take()).toEqual(bytes("0000000100000022 00"));
  });

  test("splits discards so that each fits its command", () => {
    const ranges = Array.from({ length: 10_000 }, (_, n) => ({
      start: n * 2 * PAGE_BYTES,
      length: PAGE_BYTES,
    }));
    const big = [{ name: "big", bytes: 20_000 * PAGE_BYTES }];
    const writer = new StreamWriter().discard("big", ranges).end(1).sectionEnd(1).eof();
    const items = readAll(writer.take(), [], { recovers: { sectionId: 1, blocks: big } });
    const discards = items.filter((item) => item.kind === "discard");
    expect(discards.map((item) => item.ranges.length)).toEqual([4095, 4095, 1810]);
    expect(discards.flatMap((item) => item.ranges)).toEqual(ranges);
  });

  test("refuses what is not made of pages", () => {
    expect(() => new StreamWriter().pages("r", 0, Buffer.alloc(100))).toThrow(RangeError);
    expect(() => new StreamWriter().zero("r", 100)).toThrow(RangeError);
  });

  test("writes whole streams that are read again", () => {
    for (const stream of [precopyStream(), postcopyStream()]) {
      expect(written(readAll(stream, [1000])).equals(stream)).toBe(true);
    }
    expect(readAll(precopyStream()).find(({ kind }) => kind === "devices")).toMatchObject({ bytes: DEVICES });
  });
});
