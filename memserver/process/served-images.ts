import { existsSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { codeOf } from "../../errors/errors.ts";
import { FlatImage } from "../image/flat-image.ts";
import type { PageSource } from "../image/page-source.ts";
import type { ImageProvider, ServedImage } from "../peer/served-image.ts";
import { isWhole, type OpenImages, readDescriptor, readTable, readWorkingSet } from "./open-images.ts";

/**
 * What this host has for others: the frozen parents in its data directory (runtime/fork/parent-store.ts has
 * the layout), and of the images that are open what has arrived of them.
 */
export class ImagesOnDisk implements ImageProvider {
  readonly #dir: string;
  readonly #images: OpenImages;

  /** @param dir - with `HASH/` and `by-key/KEY` */
  constructor(dir: string, images: OpenImages) {
    this.#dir = dir;
    this.#images = images;
  }

  async find(key: string): Promise<string | undefined> {
    try {
      const hash = (await readFile(join(this.#dir, "by-key", key), "utf8")).trim();
      return existsSync(join(this.#dir, hash, "memory")) ? hash : undefined;
    } catch (error) {
      if (codeOf(error) === "ENOENT") return undefined;
      throw error;
    }
  }

  async open(hash: string): Promise<ServedImage | undefined> {
    const open = await this.#images.peek(hash);
    const dir = open?.dir ?? join(this.#dir, hash);
    if (!open && !isWhole(dir)) return undefined;
    const descriptor = await readFile(join(dir, "descriptor"));
    const table = open?.table ?? (await readTable(dir, await readDescriptor(hash, dir)));
    const source: PageSource = open?.source ?? new FlatImage(join(dir, "memory"), table);
    return {
      descriptor,
      table,
      workingSet: async () => open?.workingSet ?? (await readWorkingSet(dir, table.pages)),
      // One that was open and is not any more may be found in the directory, when it is opened again.
      read: (page, count, target, at) => !open?.closed && source.read(page, count, target, at),
      // One that is open is its opener's.
      [Symbol.asyncDispose]: async () => {
        if (!open) await source[Symbol.asyncDispose]();
      },
    };
  }
}
