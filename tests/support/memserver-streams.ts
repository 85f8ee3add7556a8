import { PAGE_BYTES, type RamBlock, type StreamItem } from "../../memserver/stream/format.ts";
import { StreamReader, type StreamReaderOptions } from "../../memserver/stream/reader.ts";
import { type ReturnMessage, ReturnPathReader } from "../../memserver/stream/return-path.ts";
import { StreamWriter } from "../../memserver/stream/writer.ts";

export const BLOCKS: readonly RamBlock[] = [
  { name: "ram0", bytes: 64 * PAGE_BYTES },
  { name: "pc.bios", bytes: 2 * PAGE_BYTES },
];

/** One FULL section, as far as a reader can tell. */
export const DEVICES = Buffer.concat([
  Buffer.from("0400000007", "hex"),
  Buffer.from([5, ...Buffer.from("timer")]),
  Buffer.from("0000000000000002deadbeef00067e00000007", "hex"),
]);

/** Something like what a parent writes to a file. */
export function precopyStream(): Buffer {
  const writer = new StreamWriter().header().configuration("pc-q35-10.0").blocks(1, BLOCKS);
  writer
    .part(1)
    .zero("ram0", 0)
    .pages("ram0", PAGE_BYTES, Buffer.alloc(2 * PAGE_BYTES, 7));
  writer.zero("pc.bios", 0).sectionEnd(1).switchoverStart().end(1).sectionEnd(1);
  return writer.devices(DEVICES).eof().description(Buffer.from("{}")).take();
}

/** What the page server sends. */
export function postcopyStream(): Buffer {
  const writer = new StreamWriter().header().configuration("pc-q35-10.0");
  writer.openReturnPath().ping(1).advise().blocks(1, BLOCKS);
  for (const { name, bytes } of BLOCKS) writer.discard(name, [{ start: 0, length: bytes }]);
  writer.package((inner) => inner.listen().devices(DEVICES).ping(3).run()).part(1);
  writer
    .pages("ram0", 8 * PAGE_BYTES, Buffer.alloc(PAGE_BYTES, 9))
    .zero("pc.bios", 0)
    .zero("ram0", 0);
  return writer.sectionEnd(1).end(1).sectionEnd(1).eof().take();
}

/** What is left of an item when its bytes are gone: a copy. */
function kept(item: StreamItem): StreamItem {
  if (item.kind === "page") return { ...item, data: Buffer.from(item.data) };
  if (item.kind === "package") return { ...item, items: item.items.map((each) => kept(each) as never) };
  if (item.kind === "devices" || item.kind === "description")
    return { ...item, bytes: Buffer.from(item.bytes) };
  return item;
}

/** Cuts bytes after each of these lengths, over and over. */
export function* chunksOf(bytes: Uint8Array, lengths: readonly number[]): Generator<Uint8Array> {
  for (let start = 0, n = 0; start < bytes.length; n++) {
    const length = lengths[n % lengths.length] ?? bytes.length;
    // A copy that is overwritten once it was pushed, as a socket's buffer is.
    const chunk = Uint8Array.from(bytes.subarray(start, start + length));
    yield chunk;
    chunk.fill(0xee);
    start += length;
  }
}

/** All items of a whole stream. */
export function readAll(
  bytes: Uint8Array,
  lengths: readonly number[] = [],
  options?: StreamReaderOptions,
): StreamItem[] {
  const items: StreamItem[] = [];
  const reader = new StreamReader((item) => items.push(kept(item)), options);
  for (const chunk of chunksOf(bytes, lengths)) reader.push(chunk);
  reader.end();
  return items;
}

/** The bytes of a stream of these items. */
export function written(items: readonly StreamItem[]): Buffer {
  const writer = new StreamWriter();
  for (const item of items) writer.item(item);
  return writer.take();
}

/** All messages of a whole return path. */
export function readMessages(bytes: Uint8Array, lengths: readonly number[] = []): ReturnMessage[] {
  const messages: ReturnMessage[] = [];
  const reader = new ReturnPathReader(BLOCKS, (message) =>
    messages.push(message.kind === "recv-bitmap" ? { ...message, bits: Buffer.from(message.bits) } : message),
  );
  for (const chunk of chunksOf(bytes, lengths)) reader.push(chunk);
  reader.end();
  return messages;
}
