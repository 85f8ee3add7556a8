import { readFile, rm } from "node:fs/promises";
import { dirname, join } from "node:path";
import { decodeDescriptor } from "../../memserver/descriptor.ts";
import type { ControlEvent } from "../../memserver/process/control.ts";
import type { Host } from "../vm/host.ts";
import type { MachineProfile } from "../vm/profile.ts";
import { allowUserfaultfd } from "../vm/userfaultfd.ts";
import { LazyMemory, type LazyOptions } from "./lazy-memory.ts";
import type { Memserver, OpenImageOptions } from "./memserver.ts";
import { Parent } from "./parent.ts";
import type { ParentStore, StoredParent } from "./parent-store.ts";

interface LazyParentOptions {
  host: Host;
  profile: MachineProfile;
  memserver: Memserver;
  lazy?: LazyOptions | undefined;
  shells?: number | undefined;
  signal?: AbortSignal | undefined;
}

/**
 * A parent on this host whose children have their memory page by page all the same.
 *
 * @throws FlurryError REQUIREMENT_MISSING, MEMSERVER_FAILED, FINGERPRINT_MISMATCH, ABORTED
 */
export async function lazyParent(stored: StoredParent, options: LazyParentOptions): Promise<Parent> {
  const { host, profile, memserver, lazy, shells, signal } = options;
  allowUserfaultfd(host.qemu, host.user);
  const { descriptor, hash, imagePath } = stored;
  const held = await memserver.open(hash, dirname(imagePath), { signal });
  try {
    const memory = new LazyMemory(memserver, hash, lazy);
    return new Parent({ host, profile, descriptor, imagePath, shells, held, lazy: memory });
  } catch (error) {
    await held[Symbol.asyncDispose]();
    throw error;
  }
}

export interface RemoteParentOptions extends LazyParentOptions {
  store: ParentStore;
  /** What was asked for. */
  key: string;
  /** Addresses of other hosts' memservers. */
  peers: readonly string[];
  /** Children have their memory page by page also when all of it is here. @default false */
  stayLazy?: boolean | undefined;
  /** Hears that what has arrived could not be kept; the next one who asks for it gets it from elsewhere again. */
  onTrouble?: ((error: unknown) => void) | undefined;
}

/** A parent that another host has frozen. */
export interface RemoteParent {
  parent: Parent;
  /** Addresses of those who have it. */
  holders: readonly string[];
  descriptorBytes: number;
}

/**
 * The parent that another host has made for this key; undefined when none of them has. Its children can
 * run at once; its memory comes as they need it and in the background, and when all of it is here, it is
 * a parent of this host, and children map it.
 *
 * @throws FlurryError REQUIREMENT_MISSING, MEMSERVER_FAILED, FINGERPRINT_MISMATCH, PAGES_UNAVAILABLE,
 * PEER_FAILED, ABORTED
 */
export async function remoteParent(options: RemoteParentOptions): Promise<RemoteParent | undefined> {
  const { host, profile, memserver, lazy, shells, signal, store, key, peers } = options;
  const { image, holders } = await memserver.find(key, peers, { signal });
  if (image === null) return undefined;
  allowUserfaultfd(host.qemu, host.user);
  const dir = await store.staging();
  await using stack = new AsyncDisposableStack();
  const held = stack.use(await openStaged(memserver, image, dir, { holders, temporary: true, signal }));
  const bytes = await readFile(join(dir, "descriptor"));
  const adoption = stack.use(new Adoption(options, image, dir));
  const owned = { [Symbol.asyncDispose]: () => resources.disposeAsync() };
  const parent = new Parent({
    ...{ host, profile, descriptor: decodeDescriptor(bytes), imagePath: join(dir, "memory"), shells },
    ...{ lazy: new LazyMemory(memserver, image, lazy), arriving: true, held: owned },
  });
  const resources = stack.move();
  adoption.watch(parent, held.complete);
  return { parent, holders, descriptorBytes: bytes.length };
}

/** Takes a parent over to this host's own when all of its memory has arrived. */
class Adoption implements AsyncDisposable {
  readonly #options: RemoteParentOptions;
  readonly #image: string;
  readonly #dir: string;
  #watch: Disposable | undefined;
  #done: Promise<void> | undefined;

  constructor(options: RemoteParentOptions, image: string, dir: string) {
    this.#options = options;
    this.#image = image;
    this.#dir = dir;
  }

  watch(parent: Parent, complete: boolean): void {
    const onEvent = ({ event }: ControlEvent) => event === "image-complete" && this.#begin(parent);
    this.#watch = this.#options.memserver.watch(this.#image, onEvent, () => undefined);
    if (complete) this.#begin(parent);
  }

  #begin(parent: Parent): void {
    this.#done ??= this.#adopt(parent).catch((error) => this.#options.onTrouble?.(error));
  }

  async #adopt(parent: Parent): Promise<void> {
    const { store, key, memserver, stayLazy } = this.#options;
    const { imagePath } = await store.adopt(key, this.#image, this.#dir);
    await memserver.moved(this.#image, dirname(imagePath));
    if (!stayLazy) parent.arrived(imagePath);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#watch?.[Symbol.dispose]();
    await this.#done;
  }
}

/** Opens an image in a directory made for it, which is removed if that fails. */
async function openStaged(memserver: Memserver, image: string, dir: string, options: OpenImageOptions) {
  try {
    return await memserver.open(image, dir, options);
  } catch (error) {
    await rm(dir, { recursive: true, force: true });
    throw error;
  }
}
