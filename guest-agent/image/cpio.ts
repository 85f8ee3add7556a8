import { Buffer } from "node:buffer";

export interface CpioEntry {
  /** Path without a leading slash. */
  path: string;
  /** Type and permission bits, as in `st_mode`. */
  mode: number;
  /** Contents of a regular file, or the target of a symbolic link. */
  data?: Uint8Array;
  /** Major and minor number of a device. */
  device?: [number, number];
}

const fixedTime = 0;

/**
 * Packs entries as a cpio archive in the "newc" format that the kernel unpacks as its initramfs
 * (Documentation/driver-api/early-userspace/buffer-format.rst). Inode numbers follow the order
 * of the entries; owners and times are zero, so the same entries always give the same bytes.
 */
export function packCpio(entries: CpioEntry[]): Buffer {
  const parts: Buffer[] = [];
  let inode = 1;
  for (const entry of entries) parts.push(...packEntry(entry, inode++));
  parts.push(...packEntry({ path: "TRAILER!!!", mode: 0 }, 0));
  return Buffer.concat(parts);
}

function packEntry(entry: CpioEntry, inode: number): Buffer[] {
  const name = Buffer.from(`${entry.path}\0`, "utf8");
  const data = entry.data ?? new Uint8Array();
  const isDirectory = (entry.mode & 0o170000) === 0o040000;
  const [major, minor] = entry.device ?? [0, 0];
  const fields = [
    inode,
    entry.mode,
    0,
    0,
    isDirectory ? 2 : 1,
    fixedTime,
    data.byteLength,
    0,
    0,
    major,
    minor,
    name.byteLength,
    0,
  ];
  const header = Buffer.from(
    `070701${fields.map((field) => field.toString(16).padStart(8, "0")).join("")}`,
    "latin1",
  );
  const head = Buffer.concat([header, name]);
  return [head, padding(head.byteLength), Buffer.from(data), padding(data.byteLength)];
}

function padding(length: number): Buffer {
  return Buffer.alloc((4 - (length % 4)) % 4);
}
