import { FlurryError } from "../errors/errors.ts";
import { FOOTER_BYTES, flag, PAGE_BYTES, RAM_ID, RAM_VERSION, section } from "./stream/format.ts";

// QEMU migration stream, outer layout (docs/devel/migration in QEMU's source; all integers big endian).
const MAGIC = Buffer.from("QEVM");
const VERSION = 3;
const HEADER_BYTES = 8;
/** Any number: nothing else of the stream has one. */
const RAM_SECTION = 2;
// An empty description: without one QEMU complains on stderr.
const DESCRIPTION = Buffer.from([section.description, 0, 0, 0, 2, 0x7b, 0x7d]);

/**
 * Takes the device sections out of what `xen-save-devices-state` writes: magic, version, FULL
 * sections, EOF.
 *
 * @returns the sections with their EOF byte, as `incomingStream` wants them.
 * @throws FlurryError DESCRIPTOR_INVALID when it is no such stream
 */
export function deviceSections(saved: Buffer): Uint8Array<ArrayBuffer> {
  const complaint = complaintAbout(saved);
  if (complaint) throw new FlurryError("DESCRIPTOR_INVALID", `Cannot read saved device state: ${complaint}`);
  return new Uint8Array(saved.subarray(HEADER_BYTES));
}

function complaintAbout(bytes: Buffer): string | undefined {
  if (bytes.length < HEADER_BYTES + 2) return `it has only ${bytes.length} bytes`;
  if (!bytes.subarray(0, 4).equals(MAGIC)) return `magic is "${bytes.toString("latin1", 0, 4)}" at offset 0`;
  if (bytes.readUInt32BE(4) !== VERSION) return `version is ${bytes.readUInt32BE(4)} at offset 4`;
  if (bytes[HEADER_BYTES] !== section.full) return `section type is ${bytes[HEADER_BYTES]} at offset 8`;
  if (bytes.at(-1) !== section.eof) return `it does not end with EOF, but with ${bytes.at(-1)}`;
  return undefined;
}

/**
 * The stream that turns a waiting QEMU into a child: configuration, device sections, EOF. It has no
 * RAM section: RAM is mapped already, and QEMU leaves blocks alone that a stream does not name. The
 * firmware's ROMs stay empty, which nothing reads: a guest that resets ends its VM.
 *
 * @param machine - canonical machine type of the saved VM, e.g. `pc-q35-10.0`
 * @param sections - from `deviceSections`
 */
export function incomingStream(machine: string, sections: Uint8Array): Buffer {
  return Buffer.concat([streamHead(machine), sections, DESCRIPTION]);
}

/** Pages that a child is to have in place of those of its image: adjacent ones as runs, and their bytes. */
export interface ChangedPages {
  runs: readonly { first: number; count: number }[];
  data: Uint8Array;
}

/**
 * As `incomingStream`, for a child whose RAM is not quite that of the image which it has mapped: the pages of
 * `changed` come before the device state, and QEMU leaves all others alone.
 *
 * @param ram - name and length of the RAM block
 */
export function deltaStream(
  machine: string,
  sections: Uint8Array,
  ram: { block: string; bytes: number },
  changed: ChangedPages,
): Buffer {
  const head = streamHead(machine);
  const name = Buffer.from(ram.block, "latin1");
  const pages = changed.data.length / PAGE_BYTES;
  const setUp = 5 + 1 + RAM_ID.length + 8 + 8 + 1 + name.length + 8;
  const records = pages * (8 + PAGE_BYTES) + (pages > 0 ? 1 + name.length : 0);
  const ending = 8 + FOOTER_BYTES;
  const stream = new Cursor(
    Buffer.allocUnsafe(
      head.length + setUp + ending + 5 + records + ending + sections.length + DESCRIPTION.length,
    ),
  );
  stream.bytes(head);
  stream.byte(section.start).u32(RAM_SECTION).name(Buffer.from(RAM_ID)).u32(0).u32(RAM_VERSION);
  stream
    .u64(ram.bytes + flag.memSize)
    .name(name)
    .u64(ram.bytes);
  stream.u64(flag.eos).byte(section.footer).u32(RAM_SECTION);
  stream.byte(section.end).u32(RAM_SECTION);
  let from = 0;
  for (const { first, count } of changed.runs) {
    for (let page = first; page < first + count; page++, from += PAGE_BYTES) {
      stream.u64(page * PAGE_BYTES + flag.page + (from === 0 ? 0 : flag.continue));
      if (from === 0) stream.name(name);
      stream.bytes(changed.data.subarray(from, from + PAGE_BYTES));
    }
  }
  stream.u64(flag.eos).byte(section.footer).u32(RAM_SECTION);
  stream.bytes(sections).bytes(DESCRIPTION);
  return stream.done();
}

function streamHead(machine: string): Buffer {
  const name = Buffer.from(machine);
  const head = Buffer.alloc(HEADER_BYTES + 5);
  MAGIC.copy(head);
  head.writeUInt32BE(VERSION, 4);
  head[HEADER_BYTES] = section.configuration;
  head.writeUInt32BE(name.length, HEADER_BYTES + 1);
  return Buffer.concat([head, name]);
}

/** Writes one thing behind the other into a buffer of the right size. */
class Cursor {
  readonly #buffer: Buffer;
  #at = 0;

  constructor(buffer: Buffer) {
    this.#buffer = buffer;
  }

  byte(value: number): this {
    this.#at = this.#buffer.writeUInt8(value, this.#at);
    return this;
  }

  u32(value: number): this {
    this.#at = this.#buffer.writeUInt32BE(value, this.#at);
    return this;
  }

  u64(value: number): this {
    return this.u32(Math.floor(value / 0x1_0000_0000)).u32(value % 0x1_0000_0000);
  }

  name(name: Buffer): this {
    return this.byte(name.length).bytes(name);
  }

  bytes(bytes: Uint8Array): this {
    this.#buffer.set(bytes, this.#at);
    this.#at += bytes.length;
    return this;
  }

  /** @throws RangeError when the size was not right */
  done(): Buffer {
    if (this.#at === this.#buffer.length) return this.#buffer;
    throw new RangeError(`Wrote ${this.#at} bytes into a stream of ${this.#buffer.length}`);
  }
}
