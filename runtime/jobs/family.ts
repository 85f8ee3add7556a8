import { createHash } from "node:crypto";
import type { WorkerSpec } from "../api/mod.ts";

/**
 * Names what a parent is made of. Workers that differ only in what is handed to each task (command,
 * environment, secrets, timeout, retries) fork from the same parent.
 */
export function familyOf(spec: WorkerSpec): string {
  const { image, memoryMiB, cpus, warmUp, files, memory } = spec;
  const made = [
    image,
    memoryMiB,
    cpus,
    warmUp ?? null,
    files.map(({ path, text, base64, mode }) => [path, text ?? null, base64 ?? null, mode]),
    // As it always was for those that came before there was a choice.
    ...(memory === "lazy" ? [memory] : []),
  ];
  return createHash("sha256").update(JSON.stringify(made)).digest("hex").slice(0, 32);
}
