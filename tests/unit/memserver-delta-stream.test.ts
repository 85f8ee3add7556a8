import { expect, test } from "bun:test";
import { deltaStream } from "../../memserver/device-stream.ts";
import { PAGE_BYTES } from "../../memserver/stream/format.ts";
import { readAll } from "../support/memserver-streams.ts";

const MACHINE = "pc-q35-10.0";
const SECTIONS = sectionsOf();

/** One FULL section of a device, and the EOF. */
function sectionsOf(): Uint8Array {
  const name = Buffer.from("timer");
  const head = Buffer.from([4, 0, 0, 0, 9, name.length, ...name, 0, 0, 0, 0, 0, 0, 0, 2]);
  return Buffer.concat([head, Buffer.alloc(20, 5), Buffer.from([0x7e, 0, 0, 0, 9, 0])]);
}

test("deltaStream() has the changed pages in their places, and then the devices, as QEMU reads it", () => {
  const bytes = 64 * PAGE_BYTES;
  const data = Buffer.concat([1, 2, 3].map((value) => Buffer.alloc(PAGE_BYTES, value)));
  const runs = [
    { first: 4, count: 2 },
    { first: 63, count: 1 },
  ];
  const stream = deltaStream(MACHINE, SECTIONS, { block: "ram0", bytes }, { runs, data });
  const items = readAll(stream, [7, 1000, 3]);
  expect(items.map(({ kind }): string => kind)).toEqual([
    ...["header", "configuration", "blocks", "end", "page", "page", "page", "section-end"],
    ...["devices", "eof", "description"],
  ]);
  const pages = items.filter((item) => item.kind === "page");
  expect(
    pages.map(({ block, offset, data: page }) => [block, offset / PAGE_BYTES, page[0], page.at(-1)]),
  ).toEqual([
    ["ram0", 4, 1, 1],
    ["ram0", 5, 2, 2],
    ["ram0", 63, 3, 3],
  ]);
  expect(items[2]).toMatchObject({ blocks: [{ name: "ram0", bytes }] });
});

test("deltaStream() of nothing has no page", () => {
  const none = { runs: [], data: new Uint8Array() };
  const items = readAll(deltaStream(MACHINE, SECTIONS, { block: "ram0", bytes: PAGE_BYTES }, none));
  expect(items.filter(({ kind }) => kind === "page")).toEqual([]);
});
