import { writeFileSync } from "node:fs";
import { join } from "node:path";
import type { FrozenVm } from "../../runtime/fork/freeze.ts";

const HASH = "0123456789abcdef".repeat(4);

/** Something that the parent store takes for a frozen VM; nobody looks inside before it is forked. */
export function madeUpFrozenVm(directory: string, name: string, memory: Uint8Array): FrozenVm {
  const imagePath = join(directory, `${name}.ram`);
  writeFileSync(imagePath, memory);
  return {
    imagePath,
    pauseMs: 1,
    descriptor: {
      format: "flurry-descriptor",
      version: 3,
      frozenAt: 1_750_000_000_000,
      fingerprint: {
        qemu: "QEMU",
        machine: "pc-q35-10.0",
        cpu: "max",
        accel: "tcg",
        cpus: 1,
        memBytes: memory.length,
        devices: HASH,
        image: name,
        hostCpu: "",
      },
      deviceState: Uint8Array.of(4, 0),
      hooks: 0,
      ram: { block: "ram0", bytes: memory.length },
      lineage: { generation: 0, parent: null },
    },
  };
}
