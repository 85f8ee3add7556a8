import { FlurryError } from "../errors/errors.ts";

// QEMU migration stream, outer layout (docs/devel/migration in QEMU's source; all integers big endian).
const MAGIC = Buffer.from("QEVM");
const VERSION = 3;
const HEADER_BYTES = 8;
const SECTION_EOF = 0x00;
const SECTION_FULL = 0x04;
const SECTION_VM_DESCRIPTION = 0x06;
const SECTION_CONFIGURATION = 0x07;

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
  if (bytes[HEADER_BYTES] !== SECTION_FULL) return `section type is ${bytes[HEADER_BYTES]} at offset 8`;
  if (bytes.at(-1) !== SECTION_EOF) return `it does not end with EOF, but with ${bytes.at(-1)}`;
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
  const name = Buffer.from(machine);
  const header = Buffer.alloc(HEADER_BYTES + 5);
  MAGIC.copy(header);
  header.writeUInt32BE(VERSION, 4);
  header[HEADER_BYTES] = SECTION_CONFIGURATION;
  header.writeUInt32BE(name.length, HEADER_BYTES + 1);
  // An empty description: without one QEMU complains on stderr.
  const description = Buffer.from([SECTION_VM_DESCRIPTION, 0, 0, 0, 2, 0x7b, 0x7d]);
  return Buffer.concat([header, name, sections, description]);
}
