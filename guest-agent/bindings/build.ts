import { createHash } from "node:crypto";
import { mkdir, mkdtemp, readdir, readFile, rename, rm } from "node:fs/promises";
import { join } from "node:path";
import { codeOf } from "../../errors/errors.ts";
import { compilerVersion, exists, findCompiler, tool } from "../init/compiler.ts";

const SOURCES = join(import.meta.dirname, "src");
const HOOKS = join(import.meta.dirname, "../hooks");
const FLAGS = ["-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-O2", "-fPIC"];
/** What the shell's `flurry` is made of. */
export const GUEST_SHELL_SOURCES = ["flurry-cli.c", "flurry.c", "notes.c", "text.c"];

/** A file that every image has. */
export interface GuestToolFile {
  /** Absolute path in the image. */
  to: string;
  /** Where it is on this machine. */
  from: string;
  /** Permission bits in octal. */
  mode: string;
}

export interface GuestTools {
  files: GuestToolFile[];
  /** SHA-256 of all of them, in hex. */
  sha256: string;
}

/**
 * Builds what programs in the guest fork their VM with, and take part in forks: the shell's `flurry`, the C library and
 * its header, and the module of Python. What is compiled is found in the cache when sources, compiler and flags are as
 * before.
 *
 * @param cacheDir - kept from one build to the next
 * @throws FlurryError REQUIREMENT_MISSING without a C compiler, INTERNAL when the sources do not compile, ABORTED
 */
export async function buildGuestTools(cacheDir: string, signal?: AbortSignal): Promise<GuestTools> {
  const compiler = await findCompiler("release");
  const hash = createHash("sha256").update(JSON.stringify([await compilerVersion(compiler, signal), FLAGS]));
  const sources = (await readdir(SOURCES)).filter((name) => /\.[ch]$/.test(name)).sort();
  for (const name of sources) hash.update(`${name}\0`).update(await readFile(join(SOURCES, name)));
  const built = join(cacheDir, `tools-${hash.digest("hex").slice(0, 32)}`);
  if (!(await exists(join(built, "flurry")))) await compile(compiler, cacheDir, built, signal);
  const files = [
    { to: "/usr/bin/flurry", from: join(built, "flurry"), mode: "0755" },
    { to: "/usr/lib/libflurry.a", from: join(built, "libflurry.a"), mode: "0644" },
    { to: "/usr/include/flurry.h", from: join(SOURCES, "flurry.h"), mode: "0644" },
    { to: "/usr/include/flurry_fork.h", from: join(HOOKS, "flurry_fork.h"), mode: "0644" },
    // Wherever there is Python, Debian's looks here.
    { to: "/usr/lib/python3/dist-packages/flurry.py", from: join(HOOKS, "flurry.py"), mode: "0644" },
  ];
  const all = createHash("sha256");
  for (const { to, from, mode } of files) {
    const data = await readFile(from);
    all.update(`${to} ${mode} ${data.length}\n`).update(data);
  }
  return { files, sha256: all.digest("hex") };
}

async function compile(
  compiler: string,
  cacheDir: string,
  built: string,
  signal: AbortSignal | undefined,
): Promise<void> {
  await mkdir(cacheDir, { recursive: true });
  const work = await mkdtemp(join(cacheDir, "building-"));
  const run = (program: string, args: string[]) => tool(program, args, SOURCES, signal);
  try {
    await run(compiler, [...FLAGS, "-c", "-o", join(work, "flurry.o"), "flurry.c"]);
    await run("ar", ["rcsD", join(work, "libflurry.a"), join(work, "flurry.o")]);
    const linked = ["-static", "-s", "-Wl,--build-id=none", "-o", join(work, "flurry")];
    await run(compiler, [...FLAGS, ...linked, ...GUEST_SHELL_SOURCES]);
    await rename(work, built);
  } catch (error) {
    // Another build of the same content was faster: its result is as good as ours.
    if (codeOf(error) !== "ENOTEMPTY" && codeOf(error) !== "EEXIST") throw error;
  } finally {
    await rm(work, { recursive: true, force: true });
  }
}
