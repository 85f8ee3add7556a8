import type { Buffer } from "node:buffer";
import { FlurryError } from "../../errors/errors.ts";

export interface ModuleSource {
  /** Modules without which the agent cannot start. */
  required: string[];
  /** Modules to take if the kernel has them. */
  optional: string[];
  isBuiltIn(name: string): boolean;
  /** The uncompressed module, or undefined if the kernel has none of that name. */
  load(name: string): Promise<Buffer | undefined>;
}

/**
 * The modules to load, each after those it depends on. What depends on what is read from the
 * modules themselves (`depends=` in .modinfo), so that no depmod is needed on the host.
 *
 * @throws FlurryError IMAGE_BUILD_FAILED if a required module exists neither as a file nor built in
 */
export async function orderModules(source: ModuleSource): Promise<{ name: string; data: Buffer }[]> {
  const ordered = new Map<string, Buffer>();
  async function add(name: string, neededBy: string | undefined, isOptional: boolean): Promise<void> {
    if (ordered.has(name) || source.isBuiltIn(name)) return;
    const data = await source.load(name);
    if (data === undefined) {
      if (isOptional) return;
      const why = neededBy === undefined ? "" : `, which ${neededBy} needs`;
      throw new FlurryError("IMAGE_BUILD_FAILED", `The kernel has no module "${name}"${why}`);
    }
    for (const need of moduleDependencies(data)) await add(need, name, false);
    ordered.set(name, data);
  }
  for (const name of source.required) await add(name, undefined, false);
  for (const name of source.optional) await add(name, undefined, true);
  return [...ordered].map(([name, data]) => ({ name, data }));
}

/** Names that a module says it depends on. */
export function moduleDependencies(module: Buffer): string[] {
  const key = "\0depends=";
  const at = module.indexOf(key, 0, "latin1");
  if (at < 0) return [];
  const start = at + key.length;
  const list = module.toString("latin1", start, module.indexOf(0, start));
  return list === "" ? [] : list.split(",").map((name) => name.replaceAll("-", "_"));
}
