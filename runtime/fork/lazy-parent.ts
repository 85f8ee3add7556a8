import { readFile, rm } from "node:fs/promises";
import { dirname, join } from "node:path";
import { codeOf, FlurryError } from "../../errors/errors.ts";
import { type Descriptor, decodeDescriptor } from "../../memserver/descriptor.ts";
import { orAborted } from "../../memserver/waiting.ts";
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
  const { host, profile, memserver, lazy, shells, signal, key, peers } = options;
  const { image, holders } = await memserver.find(key, peers, { signal });
  if (image === null) return undefined;
  allowUserfaultfd(host.qemu, host.user);
  await using stack = new AsyncDisposableStack();
  const { arrival } = stack.use(await joinArrival(options, image, holders));
  const { descriptor, descriptorBytes } = arrival;
  const owned = { [Symbol.asyncDispose]: () => resources.disposeAsync() };
  const parent = new Parent({
    ...{ host, profile, descriptor, imagePath: arrival.imagePath, shells },
    ...{ lazy: new LazyMemory(memserver, image, lazy), arriving: true, held: owned },
  });
  const resources = stack.move();
  resources.use(arrival.tell(parent, options));
  return { parent, holders, descriptorBytes };
}

interface SharedArrival {
  arrival: Promise<Arrival>;
  users: number;
  /** Nobody uses it any more. */
  end: AbortController;
  ended: Promise<void> | undefined;
}

/** What comes from other hosts just now, by memserver and image: a memserver has each image once. */
const arrivals = new WeakMap<Memserver, Map<string, SharedArrival>>();

/** Takes part in the arrival of an image, which ends when the last one who does so is disposed. */
async function joinArrival(
  options: RemoteParentOptions,
  image: string,
  holders: readonly string[],
): Promise<{ arrival: Arrival } & AsyncDisposable> {
  const { memserver, signal } = options;
  const all = arrivals.get(memserver) ?? new Map<string, SharedArrival>();
  arrivals.set(memserver, all);
  for (let one = all.get(image); one?.ended; one = all.get(image)) await one.ended;
  if (!all.has(image)) await refuseOpen(memserver, image);
  const shared = all.get(image) ?? beginArrival(options, image, holders);
  all.set(image, shared);
  shared.users += 1;
  let joined = true;
  const leave = async () => {
    if (!joined) return;
    joined = false;
    shared.users -= 1;
    if (shared.users > 0) return;
    shared.ended = endArrival(shared).finally(() => all.delete(image));
    await shared.ended;
  };
  try {
    return { arrival: await orAborted(shared.arrival, signal), [Symbol.asyncDispose]: leave };
  } catch (error) {
    await leave();
    throw error;
  }
}

/** What nobody takes part in any more may be open still, for children that were forked before. */
async function refuseOpen(memserver: Memserver, image: string): Promise<void> {
  try {
    await memserver.hold(image)[Symbol.asyncDispose]();
  } catch (error) {
    if (codeOf(error) === "IMAGE_NOT_FOUND") return;
    throw error;
  }
  throw new FlurryError(
    "PAGES_UNAVAILABLE",
    `Image "${image}" still comes for children of a parent given up`,
  );
}

function beginArrival(
  options: RemoteParentOptions,
  image: string,
  holders: readonly string[],
): SharedArrival {
  const end = new AbortController();
  const arrival = Arrival.begin(options, image, holders, end.signal);
  // Each of those who wait for it hears of it.
  arrival.catch(() => undefined);
  return { arrival, users: 0, end, ended: undefined };
}

async function endArrival({ arrival, end }: SharedArrival): Promise<void> {
  end.abort();
  const [begun] = await Promise.allSettled([arrival]);
  if (begun.status === "fulfilled") await begun.value[Symbol.asyncDispose]();
}

type Told = Pick<RemoteParentOptions, "stayLazy" | "onTrouble"> & { parent: Parent };

/** An image that comes from other hosts, and is taken over to this host's own when all of it is here. */
class Arrival implements AsyncDisposable {
  readonly descriptor: Descriptor;
  readonly descriptorBytes: number;
  readonly #options: RemoteParentOptions;
  readonly #image: string;
  readonly #dir: string;
  readonly #held: AsyncDisposable;
  readonly #told = new Set<Told>();
  /** Where it is when it has been taken over. */
  #imagePath: string | undefined;
  #done: Promise<void> | undefined;

  private constructor(
    options: RemoteParentOptions,
    image: string,
    dir: string,
    bytes: Buffer,
    held: AsyncDisposable,
  ) {
    this.#options = options;
    this.#image = image;
    this.#dir = dir;
    this.#held = held;
    this.descriptor = decodeDescriptor(bytes);
    this.descriptorBytes = bytes.length;
  }

  static async begin(
    options: RemoteParentOptions,
    image: string,
    holders: readonly string[],
    signal: AbortSignal,
  ): Promise<Arrival> {
    const { store, memserver } = options;
    const dir = await store.staging();
    await using stack = new AsyncDisposableStack();
    let complete = false;
    let arrival: Arrival | undefined;
    // Before it is open: it may be complete in the same moment, and nobody says so twice.
    const watch = memserver.watch(
      image,
      ({ event }) => {
        complete ||= event === "image-complete";
        if (complete) arrival?.take();
      },
      () => undefined,
    );
    stack.use(watch);
    const held = stack.use(await openStaged(memserver, image, dir, { holders, temporary: true, signal }));
    const bytes = await readFile(join(dir, "descriptor"));
    const owned = { [Symbol.asyncDispose]: () => resources.disposeAsync() };
    arrival = new Arrival(options, image, dir, bytes, owned);
    const resources = stack.move();
    if (complete || held.complete) arrival.take();
    return arrival;
  }

  get imagePath(): string {
    return this.#imagePath ?? join(this.#dir, "memory");
  }

  /** Has a parent know what becomes of it. */
  tell(parent: Parent, { stayLazy, onTrouble }: RemoteParentOptions): Disposable {
    const told = { parent, stayLazy, onTrouble };
    this.#told.add(told);
    if (this.#imagePath !== undefined) this.#tellArrived(told, this.#imagePath);
    return { [Symbol.dispose]: () => this.#told.delete(told) };
  }

  take(): void {
    this.#done ??= this.#adopt().catch((error) => {
      for (const { onTrouble } of this.#told) onTrouble?.(error);
    });
  }

  async #adopt(): Promise<void> {
    const { store, key, memserver } = this.#options;
    const { imagePath } = await store.adopt(key, this.#image, this.#dir);
    await memserver.moved(this.#image, dirname(imagePath));
    this.#imagePath = imagePath;
    for (const told of this.#told) this.#tellArrived(told, imagePath);
  }

  #tellArrived({ parent, stayLazy }: Told, imagePath: string): void {
    parent.arrived(imagePath, stayLazy);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#done;
    await this.#held[Symbol.asyncDispose]();
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
