import { mkdirSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { readdir, readFile, rename, rm, stat, writeFile } from "node:fs/promises";
import { isAbsolute, join, relative } from "node:path";
import { z } from "zod";
import { codeOf, FlurryError } from "../../../errors/errors.ts";
import type { Inheritance } from "../../../guest-agent/protocol/mod.ts";
import type { Clock } from "../../clock.ts";
import type { CallState, Snapshot } from "../../fork/family/snapshot.ts";
import type { VmNode } from "../../fork/family/vm-node.ts";
import { flatImage } from "../../fork/flat-image.ts";
import { Parent } from "../../fork/parent.ts";
import { ParentStore } from "../../fork/parent-store.ts";
import type { Host } from "../../vm/host.ts";
import { reapLeftoverFiles, temporaryPrefix } from "../../vm/owner.ts";
import type { CheckpointInfo } from "./port.ts";

const NO_DELTA = { runs: [], data: Buffer.alloc(0) };

const Kept = z.object({
  name: z.string(),
  owner: z.string(),
  image: z.string(),
  family: z.string(),
  vm: z.string(),
  generation: z.int(),
  createdAt: z.number(),
  hash: z.string().regex(/^[0-9a-f]{64}$/),
  storedBytes: z.number(),
  profile: z.object({
    accel: z.enum(["kvm", "tcg"]),
    memMiB: z.int(),
    cpus: z.int(),
    /** Below the data directory, if it is there. */
    disk: z.string(),
  }),
  inheritances: z.array(
    z.object({ id: z.int(), name: z.string(), open: z.array(z.int()), hasExited: z.boolean() }),
  ),
  calls: z.array(z.tuple([z.int(), z.enum(["idle", "pending", "reading"])])),
});
type Kept = z.infer<typeof Kept>;

/** A checkpoint that VMs are being made of. */
export interface OpenCheckpoint extends AsyncDisposable {
  parent: Parent;
  image: string;
  family: string;
  inheritances: readonly Inheritance[];
  calls: ReadonlyMap<number, CallState>;
}

/**
 * Checkpoints on disk: `checkpoints/names/OWNER~NAME.json` says what each is, and a frozen VM by its hash lies beside
 * it. One that VMs were made of stays until the last of them is gone.
 */
export class CheckpointStore {
  readonly #host: Host;
  readonly #clock: Clock;
  readonly #dir: string;
  readonly #store: ParentStore;
  readonly #reserved = new Set<string>();
  /** By hash: open ones, and whether they are to go when they are not. */
  readonly #open = new Map<string, { users: number; isRemoved: boolean }>();

  constructor(host: Host, clock: Clock) {
    this.#host = host;
    this.#clock = clock;
    this.#store = new ParentStore(host, { dir: "checkpoints", keep: Number.POSITIVE_INFINITY });
    this.#dir = join(host.home, "checkpoints", "names");
    mkdirSync(this.#dir, { recursive: true });
    reapLeftoverFiles(this.#dir);
    this.#forgetNameless(join(host.home, "checkpoints"));
  }

  /** Those of a runtime that died before they had a name, or when they had none any more. */
  #forgetNameless(dir: string): void {
    const named = new Set(
      readdirSync(this.#dir)
        .filter((file) => file.endsWith(".json"))
        .map((file) => Kept.safeParse(JSON.parse(readFileSync(join(this.#dir, file), "utf8"))).data?.hash),
    );
    for (const name of readdirSync(dir)) {
      if (/^[0-9a-f]{64}$/.test(name) && !named.has(name)) rmSync(join(dir, name), { recursive: true });
    }
  }

  /** Keeps a name from others while its checkpoint is made. */
  reserve(name: string, owner: string): Disposable {
    const key = keyOf(name, owner);
    if (this.#reserved.has(key)) throw exists(name);
    this.#reserved.add(key);
    return { [Symbol.dispose]: () => void this.#reserved.delete(key) };
  }

  /** @throws FlurryError CHECKPOINT_EXISTS, NO_SPACE, ABORTED. Nothing of it is left then. */
  async put(
    of: Pick<Kept, "name" | "owner" | "image" | "family"> & { node: VmNode; snapshot: Snapshot },
    signal: AbortSignal,
  ): Promise<CheckpointInfo> {
    const { name, owner, image, family, node, snapshot } = of;
    if (await this.#find(name, owner)) throw exists(name);
    const { generation, calls } = snapshot;
    const { profile } = node.child.origin.base.parent;
    const { path, delta = NO_DELTA } = generation.image;
    await using flat = await flatImage(this.#host, path, delta, signal);
    const frozen = {
      descriptor: generation.descriptor,
      imagePath: flat.path,
      pauseMs: generation.stoppedMs,
    };
    const stored = await this.#store.put(keyOf(name, owner), frozen, signal);
    const { blocks } = await stat(stored.imagePath);
    const kept: Kept = {
      ...{ name, owner, image, family, vm: node.vm, generation: node.generation },
      createdAt: this.#clock.now(),
      hash: stored.hash,
      storedBytes: blocks * 512,
      profile: { ...profile, disk: this.#portable(profile.disk) },
      inheritances: generation.inheritances.map((each) => ({ ...each, open: [...each.open] })),
      calls: [...calls],
    };
    const temporary = join(this.#dir, `${temporaryPrefix()}${keyOf(name, owner)}`);
    await writeFile(temporary, JSON.stringify(kept));
    await rename(temporary, this.#path(name, owner));
    return infoOf(kept);
  }

  async list(owner: string | undefined): Promise<CheckpointInfo[]> {
    const all = await this.#all();
    return all.filter((kept) => owner === undefined || kept.owner === owner).map(infoOf);
  }

  /** @throws FlurryError CHECKPOINT_NOT_FOUND, IMAGE_CORRUPT, FINGERPRINT_MISMATCH, ABORTED */
  async open(name: string, owner: string, signal: AbortSignal): Promise<OpenCheckpoint> {
    const kept = await this.#find(name, owner);
    if (!kept) throw notFound(name);
    const entry = this.#open.get(kept.hash) ?? { users: 0, isRemoved: false };
    this.#open.set(kept.hash, entry);
    entry.users += 1;
    const leave = async () => {
      entry.users -= 1;
      if (entry.users > 0) return;
      this.#open.delete(kept.hash);
      if (entry.isRemoved) await this.#store.remove(kept.hash);
    };
    try {
      const { descriptor, imagePath } = await this.#store.load(kept.hash, signal);
      const disk = isAbsolute(kept.profile.disk)
        ? kept.profile.disk
        : join(this.#host.home, kept.profile.disk);
      const parent = new Parent({
        ...{ host: this.#host, descriptor, imagePath },
        profile: { ...kept.profile, disk },
        held: { [Symbol.asyncDispose]: leave },
      });
      const { image, family, inheritances } = kept;
      return {
        ...{ parent, image, family, inheritances, calls: new Map(kept.calls) },
        [Symbol.asyncDispose]: () => parent[Symbol.asyncDispose](),
      };
    } catch (error) {
      await leave();
      throw error;
    }
  }

  /** @param owner - undefined: whoever's it is @throws FlurryError CHECKPOINT_NOT_FOUND */
  async remove(name: string, owner: string | undefined): Promise<void> {
    const kept = await this.#find(name, owner);
    if (!kept) throw notFound(name);
    await rm(this.#path(kept.name, kept.owner), { force: true });
    const isShared = (await this.#all()).some(({ hash }) => hash === kept.hash);
    const entry = this.#open.get(kept.hash);
    if (entry) entry.isRemoved = !isShared;
    else if (!isShared) await this.#store.remove(kept.hash);
  }

  async #find(name: string, owner: string | undefined): Promise<Kept | undefined> {
    const all = await this.#all();
    return all.find((kept) => kept.name === name && (owner === undefined || kept.owner === owner));
  }

  async #all(): Promise<Kept[]> {
    const files = (await readdir(this.#dir)).filter(
      (file) => file.endsWith(".json") && !file.startsWith("."),
    );
    const all = await Promise.all(files.sort().map((file) => this.#read(join(this.#dir, file))));
    return all.filter((kept) => kept !== undefined);
  }

  async #read(path: string): Promise<Kept | undefined> {
    try {
      return Kept.parse(JSON.parse(await readFile(path, "utf8")));
    } catch (cause) {
      if (codeOf(cause) === "ENOENT") return undefined;
      throw new FlurryError("IMAGE_CORRUPT", `Cannot read the checkpoint "${path}"`, { cause });
    }
  }

  #portable(disk: string): string {
    const below = relative(this.#host.home, disk);
    return below.startsWith("..") || isAbsolute(below) ? disk : below;
  }

  #path(name: string, owner: string): string {
    return join(this.#dir, `${keyOf(name, owner)}.json`);
  }
}

function keyOf(name: string, owner: string): string {
  return `${owner || "_"}~${name}`;
}

function infoOf({ profile, ...kept }: Kept): CheckpointInfo {
  const { name, owner, image, vm, generation, createdAt, storedBytes } = kept;
  const memBytes = profile.memMiB * 1024 * 1024;
  return { name, owner, image, vm, generation, createdAt, memBytes, storedBytes };
}

function exists(name: string): FlurryError {
  return new FlurryError("CHECKPOINT_EXISTS", `There is a checkpoint "${name}" already`, {
    hint: `take another name, or remove it: flurry vm rm-checkpoint ${name}`,
  });
}

function notFound(name: string): FlurryError {
  return new FlurryError("CHECKPOINT_NOT_FOUND", `There is no checkpoint "${name}"`);
}
