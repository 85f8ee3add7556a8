export { type BuildImageOptions, type BuildProgress, type BuildStep, buildImage } from "./build.ts";
export type { Recipe, RecipeInput } from "./recipe.ts";
export { checkRequirements } from "./requirements.ts";
export { type Image, listImages, type Manifest, removeImage, resolveImage } from "./store.ts";
