import { createHash, randomUUID } from "node:crypto";
import {
  chmodSync,
  chownSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  utimesSync,
} from "node:fs";
import { mkdtemp, readFile, rename, rm, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { codeOf, FlurryError } from "../../errors/errors.ts";
import {
  type Descriptor,
  decodeDescriptor,
  descriptorHash,
  encodeDescriptor,
} from "../../memserver/descriptor.ts";
import { copyMemory, hashMemory } from "../../memserver/image/memory-image.ts";
import { PageTable } from "../../memserver/image/page-table.ts";
import { makeReachable } from "../home.ts";
import type { Host } from "../vm/host.ts";
import { reapLeftoverFiles, temporaryPrefix } from "../vm/owner.ts";
import type { FrozenVm } from "./freeze.ts";

/** Frozen parents kept; the one that was longest not used goes first. */
const KEEP_PARENTS = 8;

/** A parent on disk. */
export interface StoredParent {
  /** Content hash of the descriptor, which holds the hash of the memory image. */
  hash: string;
  descriptor: Descriptor;
  descriptorBytes: number;
  imagePath: string;
  /** File of the memory image's `PageTable`. */
  tablePath: string;
}

/**
 * Parents on disk, by content hash: `parents/HASH/descriptor`, `parents/HASH/memory` and
 * `parents/HASH/pages`, the table of its pages. A parent is found again by a key (what was asked for): `parents/by-key/KEY` holds the hash.
 */
export class ParentStore {
  readonly #host: Host;
  readonly #dir: string;
  readonly #keep: number;

  /**
   * @param options.dir - below the data directory. @default "parents"
   * @param options.keep - most that are kept
   */
  constructor(host: Host, { dir = "parents", keep = KEEP_PARENTS }: { dir?: string; keep?: number } = {}) {
    this.#host = host;
    this.#keep = keep;
    this.#dir = join(host.home, dir);
    makeReachable(this.#dir);
    mkdirSync(join(this.#dir, "by-key"), { recursive: true });
    reapLeftoverFiles(this.#dir);
  }

  /**
   * Moves a frozen VM to disk: hashes its memory, and gives up its tmpfs file.
   *
   * @throws FlurryError NO_SPACE. The frozen VM is as it was then, and nothing of it is on disk.
   */
  async put(key: string, frozen: FrozenVm, signal?: AbortSignal): Promise<StoredParent> {
    const staging = await mkdtemp(join(this.#dir, temporaryPrefix()));
    try {
      const image = await copyMemory(frozen.imagePath, join(staging, "memory"), { signal });
      const descriptor = { ...frozen.descriptor, ram: { ...frozen.descriptor.ram, hash: image.table.root } };
      const bytes = encodeDescriptor(descriptor);
      const hash = descriptorHash(bytes);
      await writeFile(join(staging, "descriptor"), bytes);
      await writeFile(join(staging, "pages"), image.table.bytes);
      this.#giveToVms(join(staging, "memory"));
      await writeFile(join(staging, "verified"), stampOf(join(staging, "memory")));
      chmodSync(staging, 0o755);
      await this.#publish(staging, hash);
      await this.#pointKey(key, hash);
      await rm(frozen.imagePath, { force: true });
      await this.#prune();
      return this.#stored(hash, descriptor, bytes.length);
    } catch (error) {
      if (codeOf(error) !== "ENOSPC") throw error;
      throw new FlurryError("NO_SPACE", `Cannot keep a parent in "${this.#dir}": the disk is full`, {
        cause: error,
      });
    } finally {
      await rm(staging, { recursive: true, force: true });
    }
  }

  /** An empty directory for a parent that comes from another host; removed if its process dies. */
  async staging(): Promise<string> {
    return await mkdtemp(join(this.#dir, temporaryPrefix()));
  }

  /**
   * Takes over a parent that has arrived in a `staging` directory: `descriptor`, `memory` and `pages`, each
   * page checked as it came.
   *
   * @throws FlurryError IMAGE_CORRUPT, DESCRIPTOR_INVALID
   */
  async adopt(key: string, hash: string, staging: string): Promise<StoredParent> {
    await rm(join(staging, "memory.map"), { force: true });
    this.#giveToVms(join(staging, "memory"));
    await writeFile(join(staging, "verified"), stampOf(join(staging, "memory")));
    chmodSync(staging, 0o755);
    await this.#publish(staging, hash);
    // Another process may have brought the same parent here; whoever has these files open goes on with them.
    await rm(staging, { recursive: true, force: true });
    await this.#pointKey(key, hash);
    await this.#prune();
    return await this.load(hash);
  }

  /**
   * The parent that was put under this key; undefined if there is none.
   *
   * @throws FlurryError IMAGE_CORRUPT or DESCRIPTOR_INVALID when its files are not what they were
   */
  async find(key: string, signal?: AbortSignal): Promise<StoredParent | undefined> {
    const hash = await this.#pointed(key);
    if (hash === undefined || !existsSync(join(this.#dir, hash))) return undefined;
    return await this.load(hash, signal);
  }

  /**
   * Loads a parent by its hash, and checks it. The memory is hashed again only if its file has been
   * touched since it was last checked.
   *
   * @throws FlurryError IMAGE_CORRUPT, DESCRIPTOR_INVALID, IMAGE_NOT_FOUND
   */
  async load(hash: string, signal?: AbortSignal): Promise<StoredParent> {
    const dir = join(this.#dir, hash);
    if (!existsSync(dir))
      throw new FlurryError("IMAGE_NOT_FOUND", `No frozen parent "${hash}" in "${this.#dir}"`);
    const bytes = await readFile(join(dir, "descriptor"));
    if (descriptorHash(bytes) !== hash) throw corrupt(dir, "its descriptor has changed");
    const descriptor = decodeDescriptor(bytes);
    await this.#verify(dir, descriptor, signal);
    const now = new Date();
    utimesSync(dir, now, now);
    return this.#stored(hash, descriptor, bytes.length);
  }

  #stored(hash: string, descriptor: Descriptor, descriptorBytes: number): StoredParent {
    const dir = join(this.#dir, hash);
    return {
      hash,
      descriptor,
      descriptorBytes,
      imagePath: join(dir, "memory"),
      tablePath: join(dir, "pages"),
    };
  }

  /** Forgets the parent that was put under this key, if there is one. */
  async drop(key: string): Promise<void> {
    const hash = await this.#pointed(key);
    if (hash === undefined) return;
    await rm(join(this.#dir, "by-key", key), { force: true });
    await this.remove(hash);
  }

  /** Forgets a parent. VMs that run from it keep their memory. */
  async remove(hash: string): Promise<void> {
    await rm(join(this.#dir, hash), { recursive: true, force: true });
  }

  async #verify(dir: string, descriptor: Descriptor, signal: AbortSignal | undefined): Promise<void> {
    const imagePath = join(dir, "memory");
    if (!existsSync(imagePath)) throw corrupt(dir, "its memory is missing");
    const { size } = statSync(imagePath);
    if (size !== descriptor.ram.bytes)
      throw corrupt(dir, `its memory has ${size} bytes, not ${descriptor.ram.bytes}`);
    if (new PageTable(await readTable(dir)).root !== descriptor.ram.hash)
      throw corrupt(dir, "the table of its pages has changed");
    const stampPath = join(dir, "verified");
    const stamp = stampOf(imagePath);
    if (existsSync(stampPath) && (await readFile(stampPath, "utf8")) === stamp) return;
    if ((await hashMemory(imagePath, { signal })) !== descriptor.ram.hash)
      throw corrupt(dir, "its memory has changed");
    await writeFile(stampPath, stamp);
  }

  /** Readable by QEMU's user alone; writable only where an old QEMU insists on opening it so. */
  #giveToVms(path: string): void {
    const { user, qemu } = this.#host;
    if (user) chownSync(path, 0, user.gid);
    chmodSync(path, qemu.readOnlyRam ? 0o440 : 0o660);
  }

  async #publish(staging: string, hash: string): Promise<void> {
    const target = join(this.#dir, hash);
    try {
      await rename(staging, target);
    } catch (error) {
      // The same parent is there already: equal by content, so nothing is lost.
      if (codeOf(error) !== "ENOTEMPTY" && codeOf(error) !== "EEXIST") throw error;
    }
  }

  async #pointKey(key: string, hash: string): Promise<void> {
    const temporary = join(this.#dir, `${temporaryPrefix()}${randomUUID()}`);
    await writeFile(temporary, `${hash}\n`);
    await rename(temporary, join(this.#dir, "by-key", key));
  }

  async #prune(): Promise<void> {
    const parents = readdirSync(this.#dir)
      .filter((name) => /^[0-9a-f]{64}$/.test(name))
      .map((name) => ({ name, usedAt: usedAt(join(this.#dir, name)) }))
      .sort((a, b) => b.usedAt - a.usedAt);
    for (const { name } of parents.slice(this.#keep)) await this.remove(name);
    const kept = new Set(parents.slice(0, this.#keep).map(({ name }) => name));
    for (const key of readdirSync(join(this.#dir, "by-key"))) {
      const hash = await this.#pointed(key);
      if (hash === undefined || kept.has(hash) || existsSync(join(this.#dir, hash))) continue;
      await rm(join(this.#dir, "by-key", key), { force: true });
    }
  }

  /** The hash that a key points at; undefined if there is no such key (any more). */
  async #pointed(key: string): Promise<string | undefined> {
    try {
      return (await readFile(join(this.#dir, "by-key", key), "utf8")).trim();
    } catch (error) {
      if (codeOf(error) === "ENOENT") return undefined;
      throw error;
    }
  }
}

async function readTable(dir: string): Promise<Buffer> {
  try {
    return await readFile(join(dir, "pages"));
  } catch (error) {
    if (codeOf(error) === "ENOENT") throw corrupt(dir, "the table of its pages is missing");
    throw error;
  }
}

/** Notes that a parent is in use, so that others are forgotten before it. */
export function markUsed(parent: Pick<StoredParent, "imagePath">): void {
  const now = new Date();
  try {
    utimesSync(dirname(parent.imagePath), now, now);
  } catch (error) {
    // It is forgotten already, which whoever uses it finds out by itself.
    if (codeOf(error) !== "ENOENT") throw error;
  }
}

/** Key of what was asked for: equal requests find the same parent. */
export function parentKey(request: Record<string, unknown>): string {
  const entries = Object.entries(request).sort(([a], [b]) => (a < b ? -1 : 1));
  return createHash("sha256").update(JSON.stringify(entries)).digest("hex");
}

/** When a parent was last used, ms since 1970; long ago if another process has removed it meanwhile. */
function usedAt(dir: string): number {
  return statSync(dir, { throwIfNoEntry: false })?.mtimeMs ?? 0;
}

/**
 * Changes whenever a file's content may have: nothing but the kernel sets the change time. The boot's id
 * is in it because a machine that loses power also loses what its files had not written yet.
 */
function stampOf(path: string): string {
  const { ino, size, ctimeNs } = statSync(path, { bigint: true });
  const boot = readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim();
  return `${ino} ${size} ${ctimeNs} ${boot}\n`;
}

function corrupt(dir: string, what: string): FlurryError {
  return new FlurryError("IMAGE_CORRUPT", `Cannot use frozen parent "${dir}": ${what}`, {
    hint: `rm -r "${dir}"; a new parent is booted at the next start`,
  });
}
