import { Buffer } from "node:buffer";
import { spawn } from "node:child_process";
import { mkdir, readdir, readFile, rm } from "node:fs/promises";
import { basename, join } from "node:path";
import { FlurryError } from "../../errors/errors.ts";
import type { Deb } from "./apt.ts";
import { packCpio } from "./cpio.ts";
import { orderModules } from "./modules.ts";
import { failure, run } from "./process.ts";
import { extractVmlinux } from "./vmlinux.ts";

/** What the agent needs before it can mount the disk; a kernel that has it built in is as good. */
const requiredModules = ["virtio_pci", "virtio_blk", "virtio_console", "squashfs", "overlay"];
const optionalModules = ["virtio_rng", "vmgenid"];

/** A kernel ready for `qemu -kernel`. */
export interface Kernel {
  release: string;
  image: Buffer;
  /** "elf" starts at once through PVH; "bzImage" first unpacks itself in the guest. */
  format: "elf" | "bzImage";
  modules: { name: string; data: Buffer }[];
}

/**
 * Takes the kernel and the modules that the agent loads out of Debian's kernel packages, as any
 * user. The kernel is unpacked here if it can be started as ELF (PVH): under TCG the guest's own
 * unpacking costs more than a second of each boot.
 */
export async function unpackKernel(debs: Deb[], directory: string, signal?: AbortSignal): Promise<Kernel> {
  const tree = join(directory, "kernel");
  await mkdir(tree, { recursive: true });
  for (const deb of debs) await unpackDeb(deb.path, tree, signal);
  const release = await singleRelease(tree);
  const modules = await loadModules(tree, release, signal);
  const vmlinuz = await readFile(join(tree, "boot", `vmlinuz-${release}`));
  const vmlinux = await extractVmlinux(vmlinuz, (tool, args, input) => filter(tool, args, input, signal));
  await rm(tree, { recursive: true, force: true });
  return { release, image: vmlinux ?? vmlinuz, format: vmlinux === undefined ? "bzImage" : "elf", modules };
}

/**
 * The part of the initramfs that comes with the kernel: the modules, and the list of their order.
 * The kernel unpacks archives that follow one another, so the agent's part is appended to it.
 */
export function packModules(modules: Kernel["modules"]): Buffer {
  const list = modules.map((module) => `/flurry/${module.name}.ko\n`).join("");
  return packCpio([
    { path: "flurry", mode: 0o040755 },
    { path: "flurry/modules", mode: 0o100644, data: Buffer.from(list) },
    ...modules.map((module) => ({ path: `flurry/${module.name}.ko`, mode: 0o100644, data: module.data })),
  ]);
}

/** The agent's part: the agent as /init. */
export function packAgent(agent: Uint8Array): Buffer {
  return packCpio([
    { path: "dev", mode: 0o040755 },
    // The kernel opens it for /init's standard streams, before anything is mounted.
    { path: "dev/console", mode: 0o020600, device: [5, 1] },
    { path: "init", mode: 0o100755, data: agent },
  ]);
}

async function unpackDeb(deb: string, tree: string, signal: AbortSignal | undefined): Promise<void> {
  const script = 'dpkg-deb --fsys-tarfile "$1" | tar -x -C "$2" --no-same-owner';
  const { exitCode, tail } = await run("sh", ["-c", script, "sh", deb, tree], { signal });
  if (exitCode !== 0) throw failure(`Cannot unpack "${deb}"`, tail);
}

async function singleRelease(tree: string): Promise<string> {
  const names = await readdir(join(tree, "boot"));
  const kernel = names.find((name) => name.startsWith("vmlinuz-"));
  if (kernel === undefined)
    throw new FlurryError("IMAGE_BUILD_FAILED", "The kernel package has no /boot/vmlinuz");
  return kernel.slice("vmlinuz-".length);
}

async function loadModules(
  tree: string,
  release: string,
  signal: AbortSignal | undefined,
): Promise<Kernel["modules"]> {
  const root = join(tree, "lib", "modules", release);
  const usr = join(tree, "usr", "lib", "modules", release);
  const directory = (await readdir(root).catch(() => undefined)) === undefined ? usr : root;
  const files = new Map<string, string>();
  for (const path of await readdir(directory, { recursive: true })) {
    const match = /^(.+)\.ko(\.xz|\.zst)?$/.exec(basename(path));
    if (match?.[1] !== undefined) files.set(canonical(match[1]), join(directory, path));
  }
  const builtIn = new Set(
    (await readFile(join(directory, "modules.builtin"), "utf8"))
      .split("\n")
      .map((line) => canonical(basename(line.trim(), ".ko"))),
  );
  return await orderModules({
    required: requiredModules,
    optional: optionalModules,
    isBuiltIn: (name) => builtIn.has(name),
    async load(name) {
      const path = files.get(name);
      return path === undefined ? undefined : await readModule(path, signal);
    },
  });
}

/** Module names have underscores, file names either. */
function canonical(name: string): string {
  return name.replaceAll("-", "_");
}

async function readModule(path: string, signal: AbortSignal | undefined): Promise<Buffer> {
  const data = await readFile(path);
  if (path.endsWith(".xz")) return await filter("xz", ["-dc"], data, signal);
  if (path.endsWith(".zst")) return await filter("zstd", ["-dcq"], data, signal);
  return data;
}

/** Sends bytes through a program. */
async function filter(
  program: string,
  args: string[],
  input: Uint8Array,
  signal: AbortSignal | undefined,
): Promise<Buffer> {
  signal?.throwIfAborted();
  const child = spawn(program, args, { stdio: ["pipe", "pipe", "pipe"], ...(signal && { signal }) });
  const { promise, resolve, reject } = Promise.withResolvers<Buffer>();
  const chunks: Buffer[] = [];
  let errors = "";
  child.stdout.on("data", (chunk: Buffer) => chunks.push(chunk));
  child.stderr.setEncoding("utf8").on("data", (chunk: string) => {
    errors += chunk;
  });
  child.stdin.on("error", (error) => {
    errors += error.message;
  });
  child.on("error", reject);
  child.on("close", (code) => {
    if (code === 0) resolve(Buffer.concat(chunks));
    else
      reject(
        new FlurryError("IMAGE_BUILD_FAILED", `"${program}" failed with exit code ${code}: ${errors.trim()}`),
      );
  });
  child.stdin.end(input);
  return await promise;
}
