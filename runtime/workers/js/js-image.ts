import { realpath } from "node:fs/promises";
import { FlurryError } from "../../../errors/errors.ts";
import {
  type BuildProgress,
  buildImage,
  type Image,
  type RecipeInput,
} from "../../../guest-agent/image/mod.ts";
import { bundleVmModule, bundleWorkerHost } from "../../../guest-agent/worker-host/bundle.ts";

/** Where the image has what runs JS workers. */
export const GUEST_BUN = "/opt/flurry/bun";
export const GUEST_WORKER_HOST = "/opt/flurry/worker-host.js";

export interface JsImageOptions {
  /** Flurry's data directory. */
  home: string;
  onProgress?: ((progress: BuildProgress) => void) | undefined;
  signal?: AbortSignal | undefined;
}

/**
 * The image that JS workers run in: Debian's essential packages, Bun, and the worker-host. Built at the
 * first call, and again when any of them has changed.
 *
 * @throws FlurryError REQUIREMENT_MISSING without Bun; as `buildImage`
 */
export async function jsImage(options: JsImageOptions): Promise<Image> {
  const { home, onProgress, signal } = options;
  // The program itself: ./flurry names a link to it.
  const bun = await realpath(bunProgram());
  const { path } = await bundleWorkerHost({ bun, signal });
  const recipe: RecipeInput = {
    name: "js",
    description: "Bun and the worker-host, for JS workers",
    files: [
      { to: GUEST_BUN, from: bun, mode: "0755" },
      { to: GUEST_WORKER_HOST, from: path, mode: "0644" },
      // Wherever a program lies, Bun looks for packages here at last.
      {
        to: "/node_modules/flurry:vm/index.js",
        content: await bundleVmModule({ bun, signal }),
        mode: "0644",
      },
    ],
  };
  return await buildImage(recipe, { home, ...(onProgress && { onProgress }), ...(signal && { signal }) });
}

/** The Bun that ./flurry has installed, else the one that runs this. */
export function bunProgram(): string {
  const bun = process.env.FLURRY_BUN || (process.versions.bun === undefined ? undefined : process.execPath);
  if (bun) return bun;
  throw new FlurryError("REQUIREMENT_MISSING", "JS workers need Bun, which is not here", {
    hint: "start this by ./flurry, or set FLURRY_BUN to its path",
  });
}
