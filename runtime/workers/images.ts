import { codeOf } from "../../errors/errors.ts";
import { type BuildProgress, buildImage, type Image, resolveImage } from "../../guest-agent/image/mod.ts";

export interface FindImageOptions {
  /** Flurry's data directory. */
  home: string;
  /** Tells what a build does. */
  onStep: (text: string) => void;
  signal: AbortSignal;
}

/**
 * The image of this name; if there is none, but a built-in recipe, it is built.
 *
 * @throws FlurryError IMAGE_NOT_FOUND; as `buildImage`
 */
export async function findImage(name: string, options: FindImageOptions): Promise<Image> {
  const { home, onStep, signal } = options;
  try {
    return await resolveImage(home, name);
  } catch (missing) {
    if (codeOf(missing) !== "IMAGE_NOT_FOUND") throw missing;
    try {
      return await buildImage(name, {
        home,
        onProgress: (progress) => onStep(buildText(name, progress)),
        signal,
      });
    } catch (error) {
      // There is no recipe either: the first error names the images that there are.
      throw codeOf(error) === "IMAGE_NOT_FOUND" ? missing : error;
    }
  }
}

/** Says in words what a build is doing. */
export function buildText(name: string, { step, fraction, detail }: BuildProgress): string {
  // Every build begins with the agent, also one that ends at once as there is no such recipe.
  if (step === "agent") return `building image ${name}`;
  const percent = fraction === undefined ? "" : ` ${Math.floor(fraction * 100)} %`;
  return `building image ${name}: ${step}${percent} (${detail})`;
}
