import { createHash } from "node:crypto";
import { imageOf, type WorkerSpec } from "../api/mod.ts";

/**
 * Names what a parent is made of. Workers that differ only in what is handed to each task (command,
 * environment, secrets, timeout, retries, how it is asked over HTTP, at which times) fork from the same parent.
 */
export function familyOf(spec: WorkerSpec): string {
  const { module, memoryMiB, cpus, warmUp, files, memory, crons } = spec;
  const made = [
    imageOf(spec),
    memoryMiB,
    cpus,
    warmUp ?? null,
    files.map(({ path, text, base64, mode }) => [path, text ?? null, base64 ?? null, mode]),
    // As it always was for those that came before there was a choice.
    ...(memory === "lazy" ? [memory] : []),
    ...(module ? [module.code, module.entry, module.warmUp] : []),
    // Whether its `scheduled()` is there is seen when it is loaded.
    ...(crons?.length ? ["scheduled"] : []),
  ];
  return createHash("sha256").update(JSON.stringify(made)).digest("hex").slice(0, 32);
}
