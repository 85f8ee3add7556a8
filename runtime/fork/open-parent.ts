import { createHash } from "node:crypto";
import { rm } from "node:fs/promises";
import { codeOf, FlurryError } from "../../errors/errors.ts";
import type { AcceleratorVerdict } from "../vm/accelerator.ts";
import { chooseAccelerator } from "../vm/accelerator.ts";
import type { Host } from "../vm/host.ts";
import type { BootSource, MachineProfile } from "../vm/profile.ts";
import { type BootedVm, bootVm } from "./boot.ts";
import { explainAgentError } from "./child.ts";
import { fingerprintOf } from "./fingerprint.ts";
import { freeze } from "./freeze.ts";
import type { LazyOptions } from "./lazy-memory.ts";
import { lazyParent, type RemoteParent, remoteParent } from "./lazy-parent.ts";
import type { Memserver } from "./memserver.ts";
import { Parent } from "./parent.ts";
import { ParentStore, parentKey, type StoredParent } from "./parent-store.ts";

/** An image as the fork needs it; what `guest-agent/image` builds has this shape. */
export interface GuestImage extends BootSource {
  /** Content hash. */
  hash: string;
  /** Read-only root disk. */
  disk: string;
  /** Release of its kernel and the versions of the packages that it comes from. */
  manifest: { kernel: { release: string; packages: Record<string, string> } };
}

/** Names the kernel of an image: images with the same one boot alike under an accelerator. */
export function kernelOf({ manifest: { kernel } }: GuestImage): string {
  return `${kernel.release} ${JSON.stringify(Object.entries(kernel.packages).sort())}`;
}

/** A command that is run in the parent before it is frozen, so that its children find all of it warm. */
export interface WarmUp {
  argv: readonly string[];
  env?: Record<string, string>;
}

/** A file that is put into the parent before its warm-up. */
export interface ParentFile {
  /** Absolute path in the guest; missing directories are made. */
  path: string;
  data: Uint8Array;
  /** Permission bits. */
  mode: number;
}

export type MemoryMode = "mapped" | "lazy";

/** What is done in the parent after its warm-up, from the host. */
export interface Preparation {
  /** What it depends on: part of the parent's key. */
  key: readonly string[];
  /** Nothing may be under way with the VM any more when it ends. */
  prepare: (vm: BootedVm, signal: AbortSignal | undefined) => Promise<void>;
}

export interface OpenParentOptions {
  host: Host;
  image: GuestImage;
  /** @default 512 */
  memMiB?: number | undefined;
  /** @default 1 */
  cpus?: number | undefined;
  files?: readonly ParentFile[] | undefined;
  warmUp?: WarmUp | undefined;
  /** Longest time of the warm-up in milliseconds, and of each file that is put there before. @default no limit */
  warmUpTimeoutMs?: number | undefined;
  /** Whether the VM has a port for the worker-host. @default false */
  workerPort?: boolean | undefined;
  preparation?: Preparation | undefined;
  /** Boots even if a frozen parent is on disk. @default false */
  fresh?: boolean | undefined;
  /** Shells kept waiting. @default 0 */
  shells?: number | undefined;
  /**
   * How children have their memory: `mapped` from the image's file, all of it at once; `lazy` from the
   * memserver, page by page.
   *
   * @default "mapped"
   */
  memory?: MemoryMode | undefined;
  /** Needed for `lazy` memory, and for `peers`. */
  memserver?: Memserver | undefined;
  /** Addresses (`HOST:PORT`) of other hosts' memservers: a parent that one of them has is not booted here. */
  peers?: readonly string[] | undefined;
  lazy?: LazyOptions | undefined;
  onProgress?: ((event: ParentProgress) => void) | undefined;
  signal?: AbortSignal | undefined;
}

/** What happens while a parent is made ready. */
export type ParentProgress =
  | { step: "probe" }
  | { step: "boot"; accel: AcceleratorVerdict }
  | { step: "console"; line: string }
  | { step: "files"; count: number }
  | { step: "warm-up"; argv: readonly string[] }
  | { step: "prepare" }
  | { step: "freeze" }
  | { step: "keep" }
  | { step: "damaged"; reason: string }
  /** Other hosts are asked for it. */
  | { step: "ask"; peers: readonly string[] }
  /** They have it. */
  | { step: "remote"; holders: readonly string[] }
  /** They cannot be asked, or what they have cannot be used; or it could not be kept here. */
  | { step: "peers-failed"; reason: string }
  | { step: "cached" };

/** How a parent came to be; times in milliseconds. A cached parent was neither booted nor frozen now. */
export interface ParentOrigin {
  cached: boolean;
  /** Addresses of the hosts whose parent it is. */
  holders?: readonly string[];
  accel: AcceleratorVerdict;
  descriptorBytes: number;
  bootMs?: number;
  warmUpMs?: number;
  pauseMs?: number;
  /** Hashing the memory and moving it to disk. */
  keepMs?: number;
}

/**
 * A frozen parent, ready to fork: the one on disk that was made for the same request, else a new one.
 *
 * @throws FlurryError of boot, files and warm-up (TASK_FAILED, TASK_TIMEOUT), freeze and disk; ABORTED
 */
export async function openParent(
  options: OpenParentOptions,
): Promise<{ parent: Parent; origin: ParentOrigin }> {
  const { host, image, onProgress, signal } = options;
  const accel = await chooseAccelerator({
    host,
    boot: image,
    kernel: kernelOf(image),
    disk: image.disk,
    onProbe: () => onProgress?.({ step: "probe" }),
    signal,
  });
  const profile: MachineProfile = {
    accel: accel.accel,
    memMiB: options.memMiB ?? 512,
    cpus: options.cpus ?? 1,
    disk: image.disk,
    ...(options.workerPort && { workerPort: true }),
  };
  const store = new ParentStore(host);
  // With the whole fingerprint, so that a parent is only found where it can be used.
  const fingerprint = fingerprintOf(host, profile, image.hash);
  const key = parentKey({
    ...fingerprint,
    warmUp: options.warmUp ?? null,
    ...filesKey(options.files),
    ...preparationKey(options),
  });
  const found = options.fresh ? undefined : await findStored(store, key, options);
  if (!found && !options.fresh) {
    const remote = await findRemote({ ...options, profile, store, key });
    if (remote) {
      const { parent, holders, descriptorBytes } = remote;
      return { parent, origin: { cached: true, holders, accel, descriptorBytes } };
    }
  }
  const { stored, ...times } = found
    ? { stored: found }
    : await makeParent({ ...options, profile, accel, store, key });
  const parent = await parentOf(stored, { ...options, profile });
  return {
    parent,
    origin: { cached: found !== undefined, accel, descriptorBytes: stored.descriptorBytes, ...times },
  };
}

async function parentOf(
  stored: StoredParent,
  options: OpenParentOptions & { profile: MachineProfile },
): Promise<Parent> {
  const { memory = "mapped", host, profile, shells } = options;
  if (memory === "lazy") return await lazyParent(stored, { ...options, memserver: memserverOf(options) });
  const { descriptor, imagePath } = stored;
  return new Parent({ host, profile, descriptor, imagePath, shells });
}

function memserverOf({ memserver }: OpenParentOptions): Memserver {
  if (memserver) return memserver;
  throw new FlurryError("BAD_ARGUMENT", "Lazy memory and parents of other hosts need a memserver");
}

/** The parent of another host. That none can be asked is no reason not to boot one here. */
async function findRemote(
  options: OpenParentOptions & { profile: MachineProfile; store: ParentStore; key: string },
): Promise<RemoteParent | undefined> {
  const { peers = [], onProgress } = options;
  if (peers.length === 0) return undefined;
  onProgress?.({ step: "ask", peers });
  const trouble = (error: unknown) =>
    onProgress?.({ step: "peers-failed", reason: error instanceof Error ? error.message : String(error) });
  try {
    const memserver = memserverOf(options);
    const stayLazy = options.memory === "lazy";
    const remote = await remoteParent({ ...options, memserver, peers, stayLazy, onTrouble: trouble });
    if (remote) onProgress?.({ step: "remote", holders: remote.holders });
    return remote;
  } catch (error) {
    const code = codeOf(error);
    if (code === "ABORTED" || code === "REQUIREMENT_MISSING" || code === "BAD_ARGUMENT") throw error;
    trouble(error);
    return undefined;
  }
}

async function findStored(store: ParentStore, key: string, options: OpenParentOptions) {
  try {
    const found = await store.find(key, options.signal);
    if (found) options.onProgress?.({ step: "cached" });
    return found;
  } catch (error) {
    const code = codeOf(error);
    if (code !== "IMAGE_CORRUPT" && code !== "DESCRIPTOR_INVALID") throw error;
    // Nothing is lost but the time of a boot: another one is made from the same request.
    await store.drop(key);
    options.onProgress?.({ step: "damaged", reason: error instanceof Error ? error.message : String(error) });
    return undefined;
  }
}

interface MakeOptions extends OpenParentOptions {
  profile: MachineProfile;
  accel: AcceleratorVerdict;
  store: ParentStore;
  key: string;
}

async function makeParent(options: MakeOptions) {
  const { host, image, profile, onProgress, signal } = options;
  onProgress?.({ step: "boot", accel: options.accel });
  await using vm = await bootVm({
    host,
    profile,
    boot: image,
    ram: "shared",
    onConsoleLine: (line) => onProgress?.({ step: "console", line }),
    signal,
  });
  await putFiles(vm, options);
  const warmUpMs = await warmUp(vm, options);
  if (options.preparation) {
    onProgress?.({ step: "prepare" });
    await options.preparation.prepare(vm, signal);
  }
  onProgress?.({ step: "freeze" });
  const frozen = await freeze(vm, image.hash, signal).catch((error) => {
    throw freezeError(error);
  });
  onProgress?.({ step: "keep" });
  const began = performance.now();
  let stored: StoredParent;
  try {
    stored = await options.store.put(options.key, frozen, signal);
  } catch (error) {
    await rm(frozen.imagePath, { force: true });
    throw error;
  }
  return { stored, bootMs: vm.bootMs, warmUpMs, pauseMs: frozen.pauseMs, keepMs: performance.now() - began };
}

/** Who started what does not stand still was the warm-up, or the module. */
function freezeError(error: unknown): unknown {
  if (codeOf(error) !== "AGENT_REFUSED") return error;
  const reason = error instanceof Error ? error.message : String(error);
  return new FlurryError("TASK_FAILED", `Cannot freeze the VM: ${reason}`, { cause: error });
}

/** Names the files in the key of a parent. One without files has the key that it always had. */
function filesKey(files: readonly ParentFile[] = []): { files?: unknown } {
  if (files.length === 0) return {};
  const named = files.map(({ path, data, mode }) => [
    path,
    mode,
    createHash("sha256").update(data).digest("hex"),
  ]);
  return { files: named };
}

/** One without has the key that it always had. */
function preparationKey({ preparation }: OpenParentOptions): { preparation?: readonly string[] } {
  return preparation ? { preparation: preparation.key } : {};
}

async function putFiles(vm: BootedVm, options: MakeOptions): Promise<void> {
  const { files = [], onProgress, warmUpTimeoutMs: timeoutMs, signal } = options;
  if (files.length === 0) return;
  onProgress?.({ step: "files", count: files.length });
  for (const { path, data, mode } of files) {
    await vm.agent.putFile(path, data, { mode, timeoutMs, signal }).catch(async (error) => {
      throw await putError(error, path, vm, timeoutMs);
    });
  }
}

async function putError(
  error: unknown,
  path: string,
  vm: BootedVm,
  timeoutMs: number | undefined,
): Promise<unknown> {
  const code = codeOf(error);
  if (code === "AGENT_TIMEOUT") {
    return new FlurryError("BOOT_TIMEOUT", `The guest has not taken "${path}" within ${timeoutMs} ms`, {
      cause: error,
    });
  }
  if (code === "AGENT_REFUSED") {
    const reason = error instanceof Error ? error.message : String(error);
    return new FlurryError("TASK_FAILED", `Cannot put "${path}" into the VM: ${reason}`, { cause: error });
  }
  return await explainAgentError(error, "the parent", vm.qemu);
}

/** Runs the warm-up command; returns the milliseconds that it took. */
async function warmUp(vm: BootedVm, options: MakeOptions): Promise<number> {
  if (!options.warmUp) return 0;
  const { argv, env } = options.warmUp;
  const { signal, warmUpTimeoutMs: timeoutMs } = options;
  options.onProgress?.({ step: "warm-up", argv });
  const began = performance.now();
  const result = await vm.agent.run(argv, { env, timeoutMs, signal }).catch(async (error) => {
    throw await warmUpError(error, vm, timeoutMs);
  });
  if (result.code === 0) return performance.now() - began;
  const how = result.signal ? `was ended by signal ${result.signal}` : `exited with status ${result.code}`;
  const output = result.stderr.trim() === "" ? result.stdout : result.stderr;
  throw new FlurryError("TASK_FAILED", `Warm-up "${argv.join(" ")}" ${how}: ${output.slice(-1000)}`);
}

async function warmUpError(error: unknown, vm: BootedVm, timeoutMs: number | undefined): Promise<unknown> {
  const code = codeOf(error);
  if (code === "AGENT_TIMEOUT") {
    return new FlurryError("TASK_TIMEOUT", `The warm-up has not ended within ${timeoutMs} ms`, {
      cause: error,
    });
  }
  if (code === "AGENT_REFUSED") {
    const reason = error instanceof Error ? error.message : String(error);
    return new FlurryError("TASK_FAILED", `The warm-up did not run: ${reason}`, { cause: error });
  }
  return await explainAgentError(error, "the parent", vm.qemu);
}
