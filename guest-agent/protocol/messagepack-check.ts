/**
 * Whether `bytes` holds whole values of the MessagePack subset that frames use (nil, booleans,
 * numbers, strings, binary, arrays, maps), and how many. A decoder trusts counts: an array that
 * claims 2^32 items would be allocated before its first item is missed. So untrusted bytes are
 * walked once, without allocating, before they are decoded. Extension types are refused, as are
 * values nested deeper than `maxDepth`.
 *
 * Source: https://github.com/msgpack/msgpack/blob/master/spec.md
 *
 * @returns the number of values, or undefined if the bytes are not what they must be
 */
export function countValues(bytes: Uint8Array, maxDepth = 4): number | undefined {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let values = 0;
  let at = 0;
  while (at < bytes.length) {
    const next = skipValue(view, at, maxDepth);
    if (next === undefined) return undefined;
    at = next;
    values++;
  }
  return values;
}

function skipValue(view: DataView, from: number, depth: number): number | undefined {
  const left = view.byteLength - from;
  if (left < 1) return undefined;
  const tag = view.getUint8(from);
  if (tag <= 0x7f || tag >= 0xe0 || tag === 0xc0 || tag === 0xc2 || tag === 0xc3) return from + 1;
  if (tag <= 0x8f) return skipItems(view, from + 1, 2 * (tag & 0x0f), depth);
  if (tag <= 0x9f) return skipItems(view, from + 1, tag & 0x0f, depth);
  if (tag <= 0xbf) return within(view, from + 1 + (tag & 0x1f));
  const width = widths[tag - 0xc4];
  if (width === undefined || left < 1 + width) return undefined;
  if (tag >= 0xca && tag <= 0xd3) return from + 1 + width;
  const count = readLength(view, from + 1, width);
  if (tag === 0xdc || tag === 0xdd) return skipItems(view, from + 1 + width, count, depth);
  if (tag === 0xde || tag === 0xdf) return skipItems(view, from + 1 + width, 2 * count, depth);
  return within(view, from + 1 + width + count);
}

// Bytes behind the tags c4 to df: a length, or the number itself; none for what is refused.
const none = undefined;
// biome-ignore format: one row for each kind
const widths = [
  1, 2, 4,                      // bin
  none, none, none,             // ext
  4, 8,                         // float
  1, 2, 4, 8, 1, 2, 4, 8,       // uint, int
  none, none, none, none, none, // fixext
  1, 2, 4,                      // str
  2, 4, 2, 4,                   // array, map
];

function readLength(view: DataView, at: number, width: number): number {
  if (width === 1) return view.getUint8(at);
  return width === 2 ? view.getUint16(at) : view.getUint32(at);
}

function within(view: DataView, end: number): number | undefined {
  return end <= view.byteLength ? end : undefined;
}

function skipItems(view: DataView, from: number, count: number, depth: number): number | undefined {
  if (depth === 0 || count > view.byteLength - from) return undefined;
  let at: number | undefined = from;
  for (let i = 0; i < count && at !== undefined; i++) at = skipValue(view, at, depth - 1);
  return at;
}
