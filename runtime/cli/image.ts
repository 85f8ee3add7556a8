import { Command } from "commander";
import {
  type BuildProgress,
  type BuildStep,
  buildImage,
  type Image,
  listImages,
  removeImage,
} from "../../guest-agent/image/mod.ts";
import { flurryHome } from "../home.ts";
import { Output, type Progress } from "./output.ts";
import { cliSignal } from "./signal.ts";

/** Where each step ends, in percent of a whole build with an empty cache. */
const stepEnds: Record<BuildStep, number> = { agent: 2, packages: 18, kernel: 30, rootfs: 96, publish: 100 };
const steps = Object.keys(stepEnds) as BuildStep[];

const buildExamples = `
Examples:
  flurry image build povray             a built-in recipe: base, povray, python
  flurry image build ./my-image.jsonc   a recipe of your own; docs/images.md says what it may contain
  flurry image build povray --rebuild   the same with Debian's newest packages`;

const removeExamples = `
Examples:
  flurry image rm povray       all images of that name
  flurry image rm 1a4e500f     one image, by its hash or the first 8 digits of it or more`;

interface JsonOption {
  json?: boolean;
}

/** `flurry image build|ls|rm`: the images that VMs boot. */
export function imageCommand(): Command {
  const command = new Command("image").description("Builds, lists and removes the images that VMs boot");
  command
    .command("build")
    .summary("Build an image from a recipe, or find it in the cache")
    .description("Builds a kernel, an initramfs and a root file system from Debian packages")
    .argument("<recipe>", "name of a built-in recipe, or path of a recipe file")
    .option("--rebuild", "build anew with the newest packages, even if the image is there")
    .option("--json", "print JSON lines")
    .addHelpText("after", buildExamples)
    .action((recipe: string, options: JsonOption & { rebuild?: boolean }) => build(recipe, options));
  command
    .command("ls")
    .summary("List the images")
    .description("Lists the images, the current one of each name first")
    .option("--json", "print JSON lines")
    .addHelpText("after", "\nExamples:\n  flurry image ls\n  flurry image ls --json | jq -r .hash")
    .action((options: JsonOption) => list(options));
  command
    .command("rm")
    .summary("Remove an image")
    .description("Removes images; VMs that run on one go on running")
    .argument("<image>", "name or hash")
    .option("--json", "print JSON lines")
    .addHelpText("after", removeExamples)
    .action((image: string, options: JsonOption) => remove(image, options));
  return command;
}

export interface EnsureImageOptions {
  /** Flurry's data directory. */
  home: string;
  output: Output;
  /** Builds anew even if the image is there. */
  rebuild?: boolean;
  signal?: AbortSignal;
}

/** Finds the image of a recipe, or builds it and shows how that goes. */
export async function ensureImage(recipe: string, options: EnsureImageOptions): Promise<Image> {
  const { home, output, rebuild = false, signal } = options;
  using shown = new BuildDisplay(output, recipe);
  const onProgress = (progress: BuildProgress) => shown.take(progress);
  const image = await buildImage(recipe, { home, rebuild, onProgress, ...(signal && { signal }) });
  shown.finish(image);
  return image;
}

/** Shows nothing at all if the image comes from the cache. */
class BuildDisplay implements Disposable {
  readonly #output: Output;
  readonly #recipe: string;
  #progress: Progress | undefined;
  #step: BuildStep | undefined;
  #percent = 0;

  constructor(output: Output, recipe: string) {
    this.#output = output;
    this.#recipe = recipe;
  }

  take({ step, fraction = 0, detail, isWarning }: BuildProgress): void {
    if (step === "agent") return;
    this.#progress ??= this.#output.progress(`Building image ${this.#recipe}`, 100);
    if (isWarning) {
      this.#output.note(detail);
      return;
    }
    if (step !== this.#step) this.#progress.describe(detail);
    this.#step = step;
    const before = steps[steps.indexOf(step) - 1];
    const start = before === undefined ? 0 : stepEnds[before];
    const percent = Math.floor(start + fraction * (stepEnds[step] - start));
    if (percent <= this.#percent) return;
    this.#progress.advance(percent - this.#percent, detail);
    this.#percent = percent;
  }

  finish(image: Image): void {
    this.#progress?.finish(`Built image ${image.name} (${image.hash}, ${size(image)})`);
  }

  [Symbol.dispose](): void {
    this.#progress?.finish();
  }
}

async function build(recipe: string, options: JsonOption & { rebuild?: boolean }): Promise<void> {
  const output = new Output(options);
  const image = await ensureImage(recipe, {
    home: flurryHome(),
    output,
    rebuild: options.rebuild ?? false,
    signal: cliSignal(),
  });
  output.print(`${image.name} ${image.hash}\n${image.dir}`);
  output.emit({ event: "image", ...describe(image) });
}

async function list(options: JsonOption): Promise<void> {
  const output = new Output(options);
  const images = await listImages(flurryHome());
  for (const image of images) output.emit({ event: "image", ...describe(image) });
  if (images.length === 0) {
    output.print("No images yet. Build one: flurry image build base");
    return;
  }
  const rows = images.map((image) => [
    image.name,
    image.isCurrent ? image.hash : `${image.hash} (superseded)`,
    image.manifest.suite,
    image.manifest.kernel.release,
    size(image),
    image.manifest.description ?? "",
  ]);
  output.print(table([["NAME", "HASH", "SUITE", "KERNEL", "SIZE", "DESCRIPTION"], ...rows]));
}

async function remove(nameOrHash: string, options: JsonOption): Promise<void> {
  const output = new Output(options);
  for (const image of await removeImage(flurryHome(), nameOrHash)) {
    output.print(`Removed ${image.name} ${image.hash}`);
    output.emit({ event: "removed", name: image.name, hash: image.hash });
  }
}

function describe(image: Image): object {
  const { manifest, ...rest } = image;
  return { ...rest, suite: manifest.suite, kernelRelease: manifest.kernel.release, bytes: bytes(image) };
}

function bytes(image: Image): number {
  return Object.values(image.manifest.files).reduce((sum, file) => sum + file.size, 0);
}

function size(image: Image): string {
  return `${(bytes(image) / 1e6).toFixed(0)} MB`;
}

function table(rows: string[][]): string {
  const widths = (rows[0] ?? []).map((_cell, column) =>
    Math.max(...rows.map((row) => (row[column] ?? "").length)),
  );
  return rows
    .map((row) =>
      row
        .map((cell, column) => cell.padEnd(widths[column] ?? 0))
        .join("  ")
        .trimEnd(),
    )
    .join("\n");
}
