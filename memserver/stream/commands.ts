import {
  COMMAND_BYTES,
  checkRange,
  command,
  invalid,
  PAGE_BYTES,
  type PageRange,
  type RamBlock,
  readName,
  readSize,
  type StreamItem,
} from "./format.ts";

/** Payload lengths of the commands that have a fixed one. */
const lengths: Readonly<Record<number, number>> = {
  [command.openReturnPath]: 0,
  [command.ping]: 4,
  [command.advise]: 16,
  [command.listen]: 0,
  [command.run]: 0,
  [command.packaged]: 4,
  [command.resume]: 0,
  [command.switchoverStart]: 0,
};
const variable: readonly number[] = [command.discard, command.recvBitmap];

/** Refuses a command that is unknown, or whose payload cannot have this length. */
export function checkCommand(code: number, length: number, at: number): void {
  const expected = lengths[code];
  if (expected === undefined && !variable.includes(code)) throw invalid(at, `unknown command ${code}`);
  if (expected !== undefined && expected !== length) {
    throw invalid(at, `command ${code} has ${length} bytes instead of ${expected}`);
  }
}

/** The command whose first byte is at `start`, complete and checked. What belongs in a package is refused. */
export function readCommand(
  bytes: Buffer,
  start: number,
  at: number,
  blocks: ReadonlyMap<string, RamBlock>,
): StreamItem {
  const code = bytes.readUInt16BE(start + 1);
  const length = bytes.readUInt16BE(start + 3);
  const payload = start + COMMAND_BYTES;
  switch (code) {
    case command.openReturnPath:
      return { kind: "open-return-path", at };
    case command.ping:
      return { kind: "ping", at, value: bytes.readUInt32BE(payload) };
    case command.advise:
      checkPageSizes(bytes, payload, at);
      return { kind: "advise", at };
    case command.discard:
      return readDiscard(bytes.subarray(payload, payload + length), at, blocks);
    case command.resume:
      return { kind: "resume", at };
    case command.recvBitmap:
      return { kind: "recv-bitmap", at, block: readBitmapBlock(bytes, payload, length, at, blocks).name };
    case command.switchoverStart:
      return { kind: "switchover-start", at };
    default:
      throw invalid(at, `command ${code} outside of a package`);
  }
}

function checkPageSizes(bytes: Buffer, payload: number, at: number): void {
  const summary = readSize(bytes, payload, at);
  const target = readSize(bytes, payload + 8, at);
  if (summary === PAGE_BYTES && target === PAGE_BYTES) return;
  throw invalid(at, `page sizes are ${summary} and ${target} instead of ${PAGE_BYTES}`);
}

function readDiscard(payload: Buffer, at: number, blocks: ReadonlyMap<string, RamBlock>): StreamItem {
  const nameLength = payload[1] ?? 0;
  const head = 3 + nameLength;
  const count = (payload.length - head) / 16;
  if (payload[0] !== 0 || !(count >= 1) || !Number.isInteger(count) || payload[head - 1] !== 0) {
    throw invalid(at, `malformed discard of ${payload.length} bytes`);
  }
  const block = blockOf(blocks, readName(payload, 2, nameLength, at), at);
  const ranges: PageRange[] = [];
  for (let next = head; next < payload.length; next += 16) {
    const range = { start: readSize(payload, next, at), length: readSize(payload, next + 8, at) };
    checkRange(block, range.start, range.length, at);
    ranges.push(range);
  }
  return { kind: "discard", at, block: block.name, ranges };
}

/** The block that a RECV_BITMAP names, in both directions. */
export function readBitmapBlock(
  bytes: Buffer,
  start: number,
  length: number,
  at: number,
  blocks: ReadonlyMap<string, RamBlock>,
): RamBlock {
  if (length < 2 || bytes[start] !== length - 1)
    throw invalid(at, `malformed bitmap name of ${length} bytes`);
  return blockOf(blocks, readName(bytes, start + 1, length - 1, at), at);
}

export function blockOf(blocks: ReadonlyMap<string, RamBlock>, name: string, at: number): RamBlock {
  const block = blocks.get(name);
  if (!block) throw invalid(at, `block "${name}" was not listed`);
  return block;
}
