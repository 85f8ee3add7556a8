import { existsSync } from "node:fs";
import { readFile, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { codeOf, FlurryError } from "../../errors/errors.ts";
import { decodeWorkingSet, encodeWorkingSet } from "../child/working-set.ts";
import { type Descriptor, decodeDescriptor, descriptorHash } from "../descriptor.ts";
import { FlatImage } from "../image/flat-image.ts";
import type { PageSource } from "../image/page-source.ts";
import { PageTable } from "../image/page-table.ts";

/** An image that children can be attached to. */
export interface OpenImage {
  hash: string;
  dir: string;
  descriptor: Descriptor;
  table: PageTable;
  source: PageSource;
  /** Pages that a child needs first; undefined until one has shown which. */
  workingSet: Uint32Array | undefined;
  /** The child that shows it just now. */
  recorder: string | undefined;
  /** Its source must not be read any more. */
  closed: boolean;
}

/** Opens an image that is not all in its directory; puts `descriptor` and `pages` there if they are missing. */
export type OpenRemote = (hash: string, dir: string, holders: readonly string[]) => Promise<RemoteSource>;

export interface RemoteSource {
  source: PageSource;
  /** What the holder knows of it. */
  workingSet: Uint32Array | undefined;
}

/** The images of a memserver, by the hash of their descriptor. */
export class OpenImages implements AsyncDisposable {
  readonly #openRemote: OpenRemote;
  readonly #images = new Map<string, Promise<OpenImage>>();

  constructor(openRemote: OpenRemote) {
    this.#openRemote = openRemote;
  }

  /**
   * Opens an image; one that is open stays so, in its new directory if that is another one.
   *
   * @throws FlurryError IMAGE_CORRUPT, DESCRIPTOR_INVALID; PAGES_UNAVAILABLE or PEER_FAILED when no holder has it
   */
  async open(hash: string, dir: string, holders: readonly string[]): Promise<OpenImage> {
    const open = this.#images.get(hash);
    if (open) {
      const image = await open;
      image.dir = dir;
      return image;
    }
    const opening = this.#open(hash, dir, holders);
    this.#images.set(hash, opening);
    opening.catch(() => this.#images.delete(hash));
    return await opening;
  }

  /** @throws FlurryError IMAGE_NOT_FOUND when it is not open */
  async get(hash: string): Promise<OpenImage> {
    const image = await this.#images.get(hash);
    if (image) return image;
    throw new FlurryError("IMAGE_NOT_FOUND", `Image "${hash}" is not open in this memserver`);
  }

  /** The image if it is open. */
  async peek(hash: string): Promise<OpenImage | undefined> {
    return await this.#images.get(hash);
  }

  async close(hash: string): Promise<void> {
    const closing = this.#images.get(hash);
    this.#images.delete(hash);
    const image = await closing;
    if (!image) return;
    image.closed = true;
    await image.source[Symbol.asyncDispose]();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const hashes = [...this.#images.keys()];
    await Promise.all(hashes.map((hash) => this.close(hash)));
  }

  async #open(hash: string, dir: string, holders: readonly string[]): Promise<OpenImage> {
    const remote = isWhole(dir) ? undefined : await this.#openRemote(hash, dir, holders);
    try {
      const descriptor = await readDescriptor(hash, dir);
      const table = await readTable(dir, descriptor);
      const source = remote?.source ?? new FlatImage(join(dir, "memory"), table);
      const workingSet = remote?.workingSet ?? (await readWorkingSet(dir, table.pages));
      return { hash, dir, descriptor, table, source, workingSet, recorder: undefined, closed: false };
    } catch (error) {
      await remote?.source[Symbol.asyncDispose]();
      throw error;
    }
  }
}

/** Whether all of an image is in its directory: what came from elsewhere has a map until it is complete. */
export function isWhole(dir: string): boolean {
  return existsSync(join(dir, "memory")) && !existsSync(join(dir, "memory.map"));
}

/** @throws FlurryError IMAGE_CORRUPT when it is another one, DESCRIPTOR_INVALID */
export async function readDescriptor(hash: string, dir: string): Promise<Descriptor> {
  const bytes = await readFile(join(dir, "descriptor"));
  if (descriptorHash(bytes) === hash) return decodeDescriptor(bytes);
  throw new FlurryError("IMAGE_CORRUPT", `The descriptor in "${dir}" is not that of image "${hash}"`);
}

/** @throws FlurryError IMAGE_CORRUPT when it is not that of the image */
export async function readTable(dir: string, descriptor: Descriptor): Promise<PageTable> {
  const table = new PageTable(await readFile(join(dir, "pages")));
  if (table.root === descriptor.ram.hash) return table;
  throw new FlurryError("IMAGE_CORRUPT", `The table of pages in "${dir}" is not that of its memory`);
}

/** The working set of an image; undefined while there is none. */
export async function readWorkingSet(dir: string, pages: number): Promise<Uint32Array | undefined> {
  try {
    return decodeWorkingSet(await readFile(join(dir, "working-set")), pages);
  } catch (error) {
    // One that is damaged costs faults: another child shows a new one.
    if (codeOf(error) === "ENOENT" || codeOf(error) === "IMAGE_CORRUPT") return undefined;
    throw error;
  }
}

/** Keeps what a child asked for as the working set of an image. */
export async function keepWorkingSet(image: OpenImage, pages: Uint32Array): Promise<void> {
  image.workingSet = pages;
  const path = join(image.dir, "working-set");
  const temporary = `${path}.${process.pid}`;
  try {
    await writeFile(temporary, encodeWorkingSet(pages));
    await rename(temporary, path);
  } catch (error) {
    await rm(temporary, { force: true });
    throw error;
  }
}
