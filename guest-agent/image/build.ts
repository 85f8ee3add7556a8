import { Buffer } from "node:buffer";
import { createHash } from "node:crypto";
import { chmod, link, mkdir, readdir, readFile, stat, writeFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import { codeOf, FlurryError } from "../../errors/errors.ts";
import { buildGuestTools, type GuestTools } from "../bindings/build.ts";
import { buildAgent } from "../init/build.ts";
import { type Deb, debTime, PrivateApt } from "./apt.ts";
import { readHostApt, readHostRelease } from "./apt-sources.ts";
import { canonical } from "./canonical.ts";
import { packAgent, packModules, unpackKernel } from "./kernel.ts";
import { acquireLock } from "./lock.ts";
import { type LoadedRecipe, loadRecipe, type RecipeInput } from "./recipe.ts";
import { checkRequirements } from "./requirements.ts";
import { buildRootfs } from "./rootfs.ts";
import { openScratch } from "./scratch.ts";
import {
  claimName,
  findByKey,
  type Image,
  listImages,
  type Manifest,
  openStaging,
  publish,
} from "./store.ts";

/** Raised whenever the same inputs give another image. */
const builderVersion = 4;

export type BuildStep = "agent" | "packages" | "kernel" | "rootfs" | "publish";

export interface BuildProgress {
  step: BuildStep;
  /** How much of the step is done, 0 to 1. */
  fraction?: number;
  detail: string;
  /** Set if `detail` says what the user should know although the build goes on. */
  isWarning?: boolean;
}

export interface BuildImageOptions {
  /** Flurry's data directory; images go to `images`, fetched packages to `cache`. */
  home: string;
  /** Builds anew, with the newest packages, even if an image of the same recipe is there. */
  rebuild?: boolean;
  onProgress?: (progress: BuildProgress) => void;
  signal?: AbortSignal;
}

/**
 * Builds the image of a recipe (an object, a JSONC file, or the name of a built-in one), or finds
 * the one that an earlier build of the same inputs made. A build that fails or is aborted leaves
 * nothing behind. Builds of the same image at the same time wait for one another.
 *
 * @throws FlurryError RECIPE_INVALID, IMAGE_BUILD_FAILED, IMAGE_NOT_FOUND (no such recipe),
 * REQUIREMENT_MISSING, NO_SPACE; ABORTED if the signal fired
 */
export async function buildImage(recipe: RecipeInput | string, options: BuildImageOptions): Promise<Image> {
  const { signal } = options;
  try {
    return await buildOrFind(recipe, options);
  } catch (error) {
    if (signal?.aborted) throw new FlurryError("ABORTED", "The image build was aborted", { cause: error });
    const code = codeOf(error);
    if (code === "ENOSPC" || code === "EDQUOT") {
      throw new FlurryError("NO_SPACE", `No space left to build the image: ${(error as Error).message}`, {
        cause: error,
        hint: "Free space, or set TMPDIR and FLURRY_HOME to directories that have some",
      });
    }
    throw error;
  }
}

async function buildOrFind(source: RecipeInput | string, options: BuildImageOptions): Promise<Image> {
  const { signal, rebuild = false, onProgress = () => undefined } = options;
  const home = resolve(options.home);
  const loaded = await loadRecipe(source);
  const host = await readHostRelease();
  onProgress({ step: "agent", detail: "Compiling the guest agent" });
  const agent = await buildAgent({ cacheDir: join(home, "cache", "agent"), ...(signal && { signal }) });
  const tools = await buildGuestTools(join(home, "cache", "agent"), signal);
  const suite = loaded.recipe.suite ?? host.codename;
  const diskKey = await inputsKey(loaded, [suite, host.arch, tools.sha256]);
  const key = createHash("sha256").update(`${diskKey} ${agent.sha256}`).digest("hex").slice(0, 32);

  const hit = rebuild ? undefined : await findByKey(home, "by-key", key);
  if (hit !== undefined) return await current(home, hit);
  await checkRequirements();
  await mkdir(home, { recursive: true, mode: 0o755 });
  await using _building = await acquireLock(join(home, "cache", "locks", diskKey), signal);
  const plan = {
    home,
    loaded,
    arch: host.arch,
    agent,
    tools,
    suite,
    key,
    diskKey,
    rebuild,
    onProgress,
    signal,
  };
  if (rebuild) return await build(plan);
  // Another process may have built it while this one waited.
  const made = await findByKey(home, "by-key", key);
  if (made !== undefined) return await current(home, made);
  const sameDisk = await findByKey(home, "by-disk", diskKey);
  return sameDisk === undefined ? await build(plan) : await renewAgent(plan, sameDisk);
}

async function current(home: string, image: Image): Promise<Image> {
  return image.isCurrent ? image : await claimName(home, image.name, image.hash);
}

interface Plan {
  home: string;
  loaded: LoadedRecipe;
  arch: string;
  agent: { path: string; sha256: string };
  tools: GuestTools;
  suite: string;
  key: string;
  diskKey: string;
  rebuild: boolean;
  onProgress: (progress: BuildProgress) => void;
  signal: AbortSignal | undefined;
}

async function build(plan: Plan): Promise<Image> {
  const { home, loaded, arch, agent, suite, key, diskKey, onProgress, signal } = plan;
  const { recipe } = loaded;
  await using scratch = await openScratch();
  await using staging = await openStaging(home);
  const { debs, kernelDebs, index } = await fetchPackages(plan);

  const kernel = await takeKernel(plan, kernelDebs, scratch.path, staging.path);
  const times = await Promise.all([...debs, ...kernelDebs].map((deb) => debTime(deb.path)));
  const sourceDateEpoch = recipe.sourceDateEpoch ?? Math.max(...times);
  const packages = await buildRootfs(
    {
      loaded,
      tools: plan.tools.files,
      debs,
      index,
      arch,
      scratch: scratch.path,
      output: join(staging.path, "root.squashfs"),
      epoch: sourceDateEpoch,
      onProgress: (fraction, detail) => onProgress({ step: "rootfs", fraction, detail }),
    },
    signal,
  );

  await finish(plan, staging.path);
  return await publish(home, staging.path, {
    name: recipe.name,
    ...(recipe.description !== undefined && { description: recipe.description }),
    suite,
    arch,
    builder: builderVersion,
    key,
    diskKey,
    sourceDateEpoch,
    agentSha256: agent.sha256,
    ...kernel,
    packages,
    env: recipe.env,
    recipe,
  });
}

/** Writes kernel and initrd, out of the Debian packages or from another image that has the same. */
async function takeKernel(
  plan: Plan,
  debs: Deb[],
  scratch: string,
  staging: string,
): Promise<Pick<Manifest, "kernel" | "modules" | "modulesBytes">> {
  const { home, agent, rebuild, onProgress, signal } = plan;
  const packages = Object.fromEntries(debs.map((deb) => [deb.name, deb.version]));
  const other = rebuild ? undefined : await findByKernel(home, packages);
  if (other !== undefined) {
    await link(other.kernel, join(staging, "vmlinuz"));
    await writeInitrd(staging, await modulesOf(other), agent.path);
    const { kernel, modules, modulesBytes } = other.manifest;
    return { kernel, modules, modulesBytes };
  }
  onProgress({ step: "kernel", detail: "Unpacking the kernel and its modules" });
  const { release, format, image, modules } = await unpackKernel(debs, scratch, signal);
  await writeFile(join(staging, "vmlinuz"), image);
  const packed = packModules(modules);
  await writeInitrd(staging, packed, agent.path);
  return {
    kernel: { release, format, packages },
    modules: modules.map((module) => module.name),
    modulesBytes: packed.byteLength,
  };
}

async function findByKernel(home: string, packages: Record<string, string>): Promise<Image | undefined> {
  const wanted = JSON.stringify(canonical(packages));
  return (await listImages(home)).find(
    ({ manifest }) =>
      manifest.builder === builderVersion && JSON.stringify(canonical(manifest.kernel.packages)) === wanted,
  );
}

async function modulesOf(image: Image): Promise<Buffer> {
  return (await readFile(image.initrd)).subarray(0, image.manifest.modulesBytes);
}

async function writeInitrd(staging: string, modules: Buffer, agent: string): Promise<void> {
  await writeFile(join(staging, "initrd"), Buffer.concat([modules, packAgent(await readFile(agent))]));
}

/** Kernel and disk of another image, with the agent of now. */
async function renewAgent(plan: Plan, other: Image): Promise<Image> {
  const { home, agent, key } = plan;
  await using staging = await openStaging(home);
  await link(other.kernel, join(staging.path, "vmlinuz"));
  await link(other.disk, join(staging.path, "root.squashfs"));
  await writeInitrd(staging.path, await modulesOf(other), agent.path);
  await finish(plan, staging.path);
  return await publish(home, staging.path, { ...other.manifest, key, agentSha256: agent.sha256 });
}

async function finish({ onProgress, signal }: Plan, directory: string): Promise<void> {
  onProgress({ step: "publish", detail: "Hashing the image" });
  // An unprivileged QEMU must be able to read it, whatever this user's umask is.
  await chmod(directory, 0o755);
  for (const name of await readdir(directory)) await chmod(join(directory, name), 0o644);
  signal?.throwIfAborted();
}

/** Packages, kernel and index; one process at a time, since builds share the package cache. */
async function fetchPackages(plan: Plan) {
  const { home, loaded, suite, onProgress, signal } = plan;
  const cache = join(home, "cache");
  await using _fetching = await acquireLock(join(cache, "locks", "apt"), signal);
  onProgress({ step: "packages", detail: "Fetching Debian's package lists" });
  const directory = join(cache, "apt", suite);
  const host = await readHostApt(signal);
  const apt = await PrivateApt.open({ directory, debs: join(cache, "debs"), host, suite }, signal);
  const warning = await apt.update((detail) => onProgress({ step: "packages", detail }));
  if (warning !== undefined) onProgress({ step: "packages", detail: warning, isWarning: true });
  const debs = await apt.fetch(loaded, (fraction, detail) =>
    onProgress({ step: "packages", fraction, detail }),
  );
  onProgress({ step: "packages", detail: "Fetching the kernel" });
  const kernelDebs = await apt.fetchKernel(loaded);
  return { debs, kernelDebs, index: await apt.index(debs) };
}

/** Hash of the recipe, the contents of its files, and what else decides on the image. */
async function inputsKey(loaded: LoadedRecipe, facts: string[]): Promise<string> {
  const hash = createHash("sha256");
  hash.update(JSON.stringify([builderVersion, ...facts, canonical(loaded.recipe)]));
  for (const [index, file] of loaded.recipe.files.entries()) {
    if (file.from === undefined) continue;
    try {
      await hashTree(hash, resolve(loaded.directory, file.from));
    } catch (cause) {
      throw loaded.fault(
        ["files", index, "from"],
        `Cannot read "${file.from}": ${(cause as Error).message}`,
        { cause },
      );
    }
  }
  return hash.digest("hex").slice(0, 32);
}

async function hashTree(hash: ReturnType<typeof createHash>, path: string): Promise<void> {
  const found = await stat(path);
  if (!found.isDirectory()) {
    const data = await readFile(path);
    hash.update(`file ${found.mode & 0o777} ${data.byteLength}\n`).update(data);
    return;
  }
  const names = (await readdir(path)).sort();
  hash.update(`directory ${found.mode & 0o777} ${JSON.stringify(names)}\n`);
  for (const name of names) await hashTree(hash, join(path, name));
}
