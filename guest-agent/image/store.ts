import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { chmod, mkdir, readdir, readFile, rename, rm, stat, unlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { pipeline } from "node:stream/promises";
import { z } from "zod";
import { FlurryError } from "../../errors/errors.ts";
import { canonical } from "./canonical.ts";
import { openOwned, type TemporaryDirectory } from "./scratch.ts";

const fileSchema = z.object({ size: z.number(), sha256: z.string() });

const manifestSchema = z.object({
  format: z.literal(1),
  name: z.string(),
  description: z.string().optional(),
  suite: z.string(),
  arch: z.string(),
  /** Version of the builder's rules; part of the cache key. */
  builder: z.number(),
  /** Hash of everything that went in, package versions aside. */
  key: z.string(),
  /** The same without the guest agent. */
  diskKey: z.string(),
  sourceDateEpoch: z.number(),
  agentSha256: z.string(),
  kernel: z.object({
    release: z.string(),
    /** "elf" is started through PVH, "bzImage" unpacks itself in the guest. */
    format: z.enum(["elf", "bzImage"]),
    /** The Debian packages it was taken from, and their versions. */
    packages: z.record(z.string(), z.string()),
  }),
  /** Length in bytes of the modules' part of the initrd, which comes before the agent's. */
  modulesBytes: z.number(),
  /** Modules of the initramfs in load order. */
  modules: z.array(z.string()),
  /** Debian packages and their versions. */
  packages: z.record(z.string(), z.string()),
  /** Default environment of programs in the VM. */
  env: z.record(z.string(), z.string()),
  /** Sizes in bytes and SHA-256 (hex). */
  files: z.object({ vmlinuz: fileSchema, initrd: fileSchema, "root.squashfs": fileSchema }),
  recipe: z.unknown(),
});

/** What an image is made of; the same content always has the same manifest, byte for byte. */
export type Manifest = z.infer<typeof manifestSchema>;

/** A built image. All paths are absolute; the files are never changed once they are there. */
export interface Image {
  name: string;
  /** First 32 hex digits of the SHA-256 of the manifest, and so of the image's content. */
  hash: string;
  dir: string;
  /** For `qemu -kernel`. */
  kernel: string;
  /** For `qemu -initrd`. */
  initrd: string;
  /** The root file system (squashfs), to be attached read-only as a raw disk. */
  disk: string;
  manifest: Manifest;
  /** Whether the image's name stands for it; false once a newer build took the name. */
  isCurrent: boolean;
}

const fileNames = ["vmlinuz", "initrd", "root.squashfs"] as const;

function imagesDir(home: string): string {
  return join(home, "images");
}

/** What finds an image: its name, the hash of its inputs, and that of its inputs but the agent. */
const indexes = ["by-name", "by-key", "by-disk"] as const;
type Index = (typeof indexes)[number];

function indexPath(home: string, kind: Index, entry: string): string {
  return join(imagesDir(home), kind, entry);
}

/** All images, by name, the current one of each name first. */
export async function listImages(home: string): Promise<Image[]> {
  const names = await readdir(imagesDir(home)).catch(ifMissing([]));
  const images: Image[] = [];
  for (const hash of names.filter((name) => /^[0-9a-f]{32}$/.test(name))) {
    const image = await readImage(home, hash);
    if (image !== undefined) images.push(image);
  }
  return images.sort(
    (a, b) =>
      a.name.localeCompare(b.name) ||
      Number(b.isCurrent) - Number(a.isCurrent) ||
      a.hash.localeCompare(b.hash),
  );
}

/**
 * The image of a name, of a hash, or of the unambiguous beginning of a hash (8 digits or more).
 *
 * @throws FlurryError IMAGE_NOT_FOUND with the names there are and the command that builds it
 */
export async function resolveImage(home: string, name: string): Promise<Image> {
  const images = await listImages(home);
  const found = images.find((image) => image.name === name && image.isCurrent) ?? byHash(images, name)[0];
  if (found !== undefined) return found;
  const current = images.filter((image) => image.isCurrent).map((image) => image.name);
  const there = current.length === 0 ? "there are no images yet" : `there are: ${current.join(", ")}`;
  throw new FlurryError("IMAGE_NOT_FOUND", `No image "${name}"; ${there}`, {
    hint: `Build it: flurry image build ${name}`,
  });
}

/**
 * Removes the image of a hash, or all images of a name. VMs that run on one keep the open files.
 *
 * @returns the removed images
 * @throws FlurryError IMAGE_NOT_FOUND
 */
export async function removeImage(home: string, nameOrHash: string): Promise<Image[]> {
  const images = await listImages(home);
  const named = images.filter((image) => image.name === nameOrHash);
  const doomed = named.length > 0 ? named : byHash(images, nameOrHash);
  if (doomed.length === 0) await resolveImage(home, nameOrHash);
  for (const image of doomed) {
    await dropIndexEntries(home, image.hash);
    // Out of sight first, so that nobody sees half an image.
    await using trash = await openOwned(imagesDir(home), ".removed-");
    await rename(image.dir, join(trash.path, "image"));
  }
  return doomed;
}

/** The image that an earlier build with the same inputs (or the same but for the agent) made. */
export async function findByKey(
  home: string,
  kind: "by-key" | "by-disk",
  key: string,
): Promise<Image | undefined> {
  const hash = await readFile(indexPath(home, kind, key), "utf8").catch(ifMissing(undefined));
  return hash === undefined ? undefined : await readImage(home, hash.trim());
}

/**
 * Publishes a finished directory (the three files) under its content hash, in one step. If the
 * same content is there already, that is used and the directory removed.
 */
export async function publish(
  home: string,
  directory: string,
  facts: Omit<Manifest, "files" | "format"> & Partial<Pick<Manifest, "files" | "format">>,
): Promise<Image> {
  const files = {} as Manifest["files"];
  for (const name of fileNames) files[name] = await measure(join(directory, name));
  const manifest: Manifest = { ...facts, format: 1, files };
  const text = `${JSON.stringify(canonical(manifest), null, 2)}\n`;
  await writeFile(join(directory, "manifest.json"), text, { mode: 0o644 });
  const hash = createHash("sha256").update(text).digest("hex").slice(0, 32);
  const target = join(imagesDir(home), hash);
  try {
    await rename(directory, target);
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code;
    if (code !== "ENOTEMPTY" && code !== "EEXIST") throw error;
    await rm(directory, { recursive: true, force: true });
  }
  await writeIndex(indexPath(home, "by-key", facts.key), hash);
  await writeIndex(indexPath(home, "by-disk", facts.diskKey), hash);
  return await claimName(home, facts.name, hash);
}

/** Makes the name stand for the image. */
export async function claimName(home: string, name: string, hash: string): Promise<Image> {
  await writeIndex(indexPath(home, "by-name", name), hash);
  const image = await readImage(home, hash);
  if (image === undefined)
    throw new FlurryError("IMAGE_BUILD_FAILED", `Image ${hash} was removed while it was built`);
  return image;
}

/** A new directory beside the images, so that publishing it is a rename. */
export async function openStaging(home: string): Promise<TemporaryDirectory> {
  const made = await mkdir(imagesDir(home), { recursive: true });
  // Not by mkdir's mode, which a umask cuts: the user of the VMs must be able to pass through.
  if (made !== undefined) await chmod(imagesDir(home), 0o755);
  return await openOwned(imagesDir(home), ".building-");
}

/** Undefined if there is no complete image of this hash. */
async function readImage(home: string, hash: string): Promise<Image | undefined> {
  const dir = join(imagesDir(home), hash);
  const text = await readFile(join(dir, "manifest.json"), "utf8").catch(ifMissing(undefined));
  if (text === undefined) return undefined;
  const parsed = manifestSchema.safeParse(parseJson(text));
  if (!parsed.success) return undefined;
  const manifest = parsed.data;
  for (const name of fileNames) {
    const found = await stat(join(dir, name)).catch(ifMissing(undefined));
    if (found?.size !== manifest.files[name].size) return undefined;
  }
  const current = await readFile(indexPath(home, "by-name", manifest.name), "utf8").catch(ifMissing(""));
  return {
    name: manifest.name,
    hash,
    dir,
    kernel: join(dir, "vmlinuz"),
    initrd: join(dir, "initrd"),
    disk: join(dir, "root.squashfs"),
    manifest,
    isCurrent: current.trim() === hash,
  };
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    if (error instanceof SyntaxError) return undefined;
    throw error;
  }
}

function byHash(images: Image[], prefix: string): Image[] {
  if (!/^[0-9a-f]{8,}$/.test(prefix)) return [];
  const found = images.filter((image) => image.hash.startsWith(prefix));
  return found.length === 1 ? found : [];
}

async function dropIndexEntries(home: string, hash: string): Promise<void> {
  for (const kind of indexes) {
    const directory = join(imagesDir(home), kind);
    for (const entry of await readdir(directory).catch(ifMissing([]))) {
      const path = join(directory, entry);
      const target = await readFile(path, "utf8").catch(ifMissing(""));
      if (target.trim() === hash) await unlink(path).catch(ifMissing(undefined));
    }
  }
}

async function writeIndex(path: string, hash: string): Promise<void> {
  await mkdir(join(path, ".."), { recursive: true, mode: 0o755 });
  const temporary = `${path}.${process.pid}.new`;
  await writeFile(temporary, `${hash}\n`, { mode: 0o644 });
  await rename(temporary, path);
}

async function measure(path: string): Promise<{ size: number; sha256: string }> {
  const hash = createHash("sha256");
  await pipeline(createReadStream(path), hash);
  return { size: (await stat(path)).size, sha256: hash.digest("hex") };
}

function ifMissing<T>(value: T): (error: NodeJS.ErrnoException) => T {
  return (error) => {
    if (error.code === "ENOENT") return value;
    throw error;
  };
}
