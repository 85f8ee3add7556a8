import { FlurryError } from "../../errors/errors.ts";

// QEMU's migration stream (docs/devel/migration in QEMU's source), as QEMU 7.2 to 10.0 write it for
// x86. All integers are big endian.
export const MAGIC = 0x5145564d;
export const STREAM_VERSION = 3;
export const HEADER_BYTES = 8;
export const PAGE_BYTES = 4096;
export const RAM_ID = "ram";
export const RAM_VERSION = 4;
export const CAPABILITIES_ID = "configuration/capabilities";
export const IGNORE_SHARED = "x-ignore-shared";

export const section = {
  eof: 0x00,
  start: 0x01,
  part: 0x02,
  end: 0x03,
  full: 0x04,
  subsection: 0x05,
  description: 0x06,
  configuration: 0x07,
  command: 0x08,
  footer: 0x7e,
} as const;

export const FOOTER_BYTES = 5;

/** The low 12 bits of what begins a record of the RAM section. */
export const flag = { zero: 0x02, memSize: 0x04, page: 0x08, eos: 0x10, continue: 0x20 } as const;
export const FLAG_BITS = 0xfff;

export const command = {
  openReturnPath: 1,
  ping: 2,
  advise: 3,
  listen: 4,
  run: 5,
  discard: 6,
  packaged: 7,
  resume: 9,
  recvBitmap: 10,
  switchoverStart: 11,
} as const;

export const COMMAND_BYTES = 5;
/** The payload's length is a u16. */
export const MAX_PAYLOAD_BYTES = 0xffff;
/** QEMU's own limit of a package; our device states have 60 KB. */
export const MAX_DEVICE_BYTES = 16 * 1024 * 1024;
/** The largest seen has 101 KB. */
export const MAX_DESCRIPTION_BYTES = 1024 * 1024;
/** A machine of ours has six. */
export const MAX_BLOCKS = 1024;

/** One block of guest memory, as its sender knows it. */
export interface RamBlock {
  name: string;
  /** Its used length, a multiple of the page size. */
  bytes: number;
  /** Guest-physical address; sent with the capability `x-ignore-shared` only. */
  address?: bigint;
}

/** Bytes of a block, both multiples of the page size. */
export interface PageRange {
  start: number;
  length: number;
}

interface RecordHead {
  block: string;
  /** In the block, a multiple of the page size. */
  offset: number;
  /** Whether the block's name is in the record, instead of CONTINUE. */
  named: boolean;
}

export type PageItem = RecordHead & { kind: "page"; data: Uint8Array };

/** What may be sent in a package, beside the device state. */
type PackageItem =
  | { kind: "listen" }
  | { kind: "run" }
  | { kind: "ping"; value: number }
  /** FULL sections, whose lengths only QEMU knows: from the first one's type to the last one's footer. */
  | { kind: "devices"; bytes: Uint8Array };

type OuterItem =
  | { kind: "header" }
  | { kind: "configuration"; machine: string; capabilities: string[] }
  | { kind: "open-return-path" }
  | { kind: "advise" }
  | { kind: "discard"; block: string; ranges: PageRange[] }
  | { kind: "package"; items: Located<PackageItem>[] }
  | { kind: "resume" }
  | { kind: "recv-bitmap"; block: string }
  | { kind: "switchover-start" }
  /** The RAM section's START, with its footer. */
  | { kind: "blocks"; sectionId: number; blocks: RamBlock[] }
  /** The RAM section's next PART or END begins. */
  | { kind: "part"; sectionId: number }
  | { kind: "end"; sectionId: number }
  | (RecordHead & { kind: "zero" })
  | PageItem
  /** EOS and the footer of a PART or END. */
  | { kind: "section-end"; sectionId: number }
  | { kind: "eof" }
  /** JSON about the device state. */
  | { kind: "description"; bytes: Uint8Array };

/** `at`: offset in the stream of the item's first byte. */
type Located<T> = T & { at: number };

/** What a migration stream consists of. */
export type StreamItem = Located<OuterItem | PackageItem>;
export type PackagedItem = Located<PackageItem>;

/** The error for a stream that is none, or none that is supported. */
export function invalid(at: number, reason: string): FlurryError {
  return new FlurryError("STREAM_INVALID", `Cannot read migration stream: ${reason} at offset ${at}`);
}

/** A u64 that is a size or an offset. */
export function readSize(bytes: Buffer, start: number, at: number): number {
  const high = bytes.readUInt32BE(start);
  if (high > 0x1fffff) throw invalid(at, "size or offset is beyond 2^53");
  return high * 0x1_0000_0000 + bytes.readUInt32BE(start + 4);
}

/** A name of `length` bytes: printable ASCII, so that it is the same bytes when it is written again. */
export function readName(bytes: Buffer, start: number, length: number, at: number): string {
  const name = bytes.toString("latin1", start, start + length);
  if (!/^[\x20-\x7e]+$/.test(name)) throw invalid(at, `${JSON.stringify(name.slice(0, 40))} is no name`);
  return name;
}

/**
 * @throws FlurryError STREAM_INVALID when the range is not made of pages, or not in the block
 */
export function checkRange(block: RamBlock, start: number, length: number, at: number): void {
  if (start % PAGE_BYTES !== 0 || length % PAGE_BYTES !== 0 || length === 0) {
    throw invalid(at, `range ${start}+${length} of block "${block.name}" is not made of pages`);
  }
  if (start + length > block.bytes) {
    throw invalid(at, `range ${start}+${length} is outside of block "${block.name}" of ${block.bytes} bytes`);
  }
}

/** Whether the bytes end with the footer of a section. */
export function endsWithFooter(bytes: Uint8Array, end: number): boolean {
  return bytes[end - FOOTER_BYTES] === section.footer;
}
