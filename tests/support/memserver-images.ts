import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { type Descriptor, descriptorHash, encodeDescriptor } from "../../memserver/descriptor.ts";
import { ENTRY_BYTES, PageTable, pageEntry } from "../../memserver/image/page-table.ts";
import { PAGE_BYTES } from "../../memserver/stream/format.ts";
import { ScriptedSource } from "./memserver-source.ts";
import { DEVICES } from "./memserver-streams.ts";

export const MACHINE = "pc-q35-10.0";

/** An image in a directory, as a parent store keeps it, of a VM that nobody could start. */
export interface MadeUpImage {
  hash: string;
  dir: string;
  /** What is in it. */
  source: ScriptedSource;
}

/** Makes one whose pages are `pageOf`'s. */
export function makeImage(dir: string, pages: number, zeros: Iterable<number> = []): MadeUpImage {
  const source = new ScriptedSource({ pages, zeros });
  const memory = Buffer.alloc(pages * PAGE_BYTES);
  source.read(0, pages, memory, 0);
  const entries = Buffer.alloc(pages * ENTRY_BYTES);
  for (let page = 0; page < pages; page++) pageEntry(source.content(page)).copy(entries, page * ENTRY_BYTES);
  const hex = "0123456789abcdef".repeat(4);
  const descriptor: Descriptor = {
    format: "flurry-descriptor",
    version: 3,
    frozenAt: 1_750_000_000_000,
    fingerprint: {
      ...{ qemu: "QEMU", machine: MACHINE, cpu: "max", accel: "tcg", cpus: 1, hostCpu: "" },
      ...{ memBytes: memory.length, devices: hex, image: "made-up" },
    },
    deviceState: Buffer.concat([DEVICES, Uint8Array.of(0)]),
    hooks: 0,
    ram: { block: "ram0", bytes: memory.length, hash: new PageTable(entries).root },
    lineage: { generation: 0, parent: null },
  };
  const bytes = encodeDescriptor(descriptor);
  writeFileSync(join(dir, "memory"), memory);
  writeFileSync(join(dir, "pages"), entries);
  writeFileSync(join(dir, "descriptor"), bytes);
  return { hash: descriptorHash(bytes), dir, source };
}
