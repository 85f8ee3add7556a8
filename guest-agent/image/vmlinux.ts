import type { Buffer } from "node:buffer";

/** Runs a decompressor: program, arguments, input. */
export type Decompress = (program: string, args: string[], input: Uint8Array) => Promise<Buffer>;

const formats: { magic: number[]; program: string; args: string[] }[] = [
  { magic: [0x28, 0xb5, 0x2f, 0xfd], program: "zstd", args: ["-dcq"] },
  { magic: [0xfd, 0x37, 0x7a, 0x58, 0x5a], program: "xz", args: ["-dcq", "--single-stream"] },
  { magic: [0x1f, 0x8b], program: "gzip", args: ["-dcq"] },
];

/** Type of the ELF note with the 32-bit entry point of PVH (XEN_ELFNOTE_PHYS32_ENTRY). */
const pvhNoteType = 18;

/**
 * The ELF kernel inside a bzImage (Documentation/arch/x86/boot.rst, payload_offset and
 * payload_length), or undefined if it cannot be had or cannot be started through PVH.
 */
export async function extractVmlinux(bzImage: Buffer, decompress: Decompress): Promise<Buffer | undefined> {
  const payload = payloadOf(bzImage);
  const format = formats.find(({ magic }) => magic.every((byte, index) => payload?.[index] === byte));
  if (payload === undefined || format === undefined) return undefined;
  const kernel = await decompress(format.program, format.args, payload);
  return hasPvhEntry(kernel) ? kernel : undefined;
}

function payloadOf(bzImage: Buffer): Buffer | undefined {
  if (bzImage.length < 0x250 || bzImage.toString("latin1", 0x202, 0x206) !== "HdrS") return undefined;
  const protocolVersion = bzImage.readUInt16LE(0x206);
  if (protocolVersion < 0x0208) return undefined;
  const start = ((bzImage[0x1f1] || 4) + 1) * 512 + bzImage.readUInt32LE(0x248);
  // The payload ends with its unpacked size, which gzip has as part of its format.
  const isGzip = bzImage[start] === 0x1f && bzImage[start + 1] === 0x8b;
  const length = bzImage.readUInt32LE(0x24c) - (isGzip ? 0 : 4);
  return start + length <= bzImage.length ? bzImage.subarray(start, start + length) : undefined;
}

/** Whether a 64-bit little-endian ELF file has the PVH note. */
function hasPvhEntry(elf: Buffer): boolean {
  if (elf.length < 64 || elf.readUInt32BE(0) !== 0x7f454c46) return false;
  const table = Number(elf.readBigUInt64LE(32));
  const size = elf.readUInt16LE(54);
  const count = elf.readUInt16LE(56);
  for (let index = 0; index < count; index++) {
    const header = table + index * size;
    if (elf.readUInt32LE(header) !== 4) continue;
    const start = Number(elf.readBigUInt64LE(header + 8));
    const end = start + Number(elf.readBigUInt64LE(header + 32));
    if (notesInclude(elf, start, end)) return true;
  }
  return false;
}

function notesInclude(elf: Buffer, start: number, end: number): boolean {
  for (let at = start; at + 12 <= end; ) {
    const nameSize = elf.readUInt32LE(at);
    const dataSize = elf.readUInt32LE(at + 4);
    const name = elf.toString("latin1", at + 12, at + 12 + nameSize);
    if (elf.readUInt32LE(at + 8) === pvhNoteType && name === "Xen\0") return true;
    at += 12 + align4(nameSize) + align4(dataSize);
  }
  return false;
}

function align4(size: number): number {
  return (size + 3) & ~3;
}
