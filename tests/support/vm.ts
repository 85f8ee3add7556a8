import { buildImage, type Image } from "../../guest-agent/image/mod.ts";
import { type OpenParentOptions, openParent } from "../../runtime/fork/open-parent.ts";
import type { Parent } from "../../runtime/fork/parent.ts";
import { flurryHome } from "../../runtime/home.ts";
import { taskWarmUp } from "../../runtime/jobs/task.ts";
import type { Host } from "../../runtime/vm/host.ts";

/** The `base` image, from the cache of the data directory; built there by the first test that needs it. */
export function baseImage(): Promise<Image> {
  return buildImage("base", { home: flurryHome() });
}

/** A frozen parent of the `base` image that is booted once and then shared by all tests through the disk. */
export async function baseParent(host: Host, options: Partial<OpenParentOptions> = {}): Promise<Parent> {
  const image = await baseImage();
  const { parent } = await openParent({ host, image, warmUp: taskWarmUp(), ...options });
  return parent;
}
