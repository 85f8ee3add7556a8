import { createHash } from "node:crypto";
import { mkdir, mkdtemp, readdir, readFile, rename, rm } from "node:fs/promises";
import { homedir } from "node:os";
import { join } from "node:path";
import { compilerVersion, exists, findCompiler, tool } from "./compiler.ts";

const sourceDir = join(import.meta.dirname, "src");

const commonFlags = ["-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror"];
const releaseFlags = ["-O2", "-static", "-s", "-Wl,--build-id=none"];

/** What `buildAgent` made: the executable's path and the SHA-256 (hex) of its bytes. */
export interface BuiltAgent {
  path: string;
  sha256: string;
}

export interface BuildAgentOptions {
  /**
   * `release` is the static program for PID 1; `sanitize` the same sources under clang's address and
   * undefined-behaviour sanitizers; `fuzz` the parser alone as a libFuzzer program;
   * `sabotage` as `release`, but it does not do what host names say: see src/sabotage.h.
   * @default "release"
   */
  variant?: "release" | "sanitize" | "fuzz" | "sabotage";
  /** @default `$XDG_CACHE_HOME/flurry/agent`, or `~/.cache/flurry/agent` */
  cacheDir?: string;
  signal?: AbortSignal;
}

/**
 * Builds the guest agent, or finds it in the cache: the key is the hash of its sources, compiler and
 * flags, so a build is done once for each content. Builds at the same time do not disturb each other.
 *
 * @throws FlurryError REQUIREMENT_MISSING without a suitable C compiler, INTERNAL when the sources do
 * not compile, ABORTED
 */
export async function buildAgent(options: BuildAgentOptions = {}): Promise<BuiltAgent> {
  const variant = options.variant ?? "release";
  const cacheDir = options.cacheDir ?? defaultCacheDir();
  const compiler = await findCompiler(variant);
  const sources = await sourceFiles(variant);
  const flags = flagsOf(variant);
  const version = await compilerVersion(compiler, options.signal);
  const hash = createHash("sha256").update(JSON.stringify([version, flags]));
  for (const file of [...sources.c, ...sources.h]) {
    hash.update(`${file}\0`).update(await readFile(join(sourceDir, file)));
  }
  const finalDir = join(cacheDir, `${variant}-${hash.digest("hex").slice(0, 32)}`);
  const path = join(finalDir, "flurry-init");
  if (!(await exists(path))) await compile(compiler, flags, sources.c, cacheDir, finalDir, options.signal);
  const sha256 = createHash("sha256")
    .update(await readFile(path))
    .digest("hex");
  return { path, sha256 };
}

function defaultCacheDir(): string {
  return join(process.env.XDG_CACHE_HOME || join(homedir(), ".cache"), "flurry", "agent");
}

function flagsOf(variant: NonNullable<BuildAgentOptions["variant"]>): string[] {
  if (variant === "release") return [...commonFlags, ...releaseFlags];
  if (variant === "sabotage") return [...commonFlags, ...releaseFlags, "-DFL_SABOTAGE"];
  const sanitizers = variant === "fuzz" ? "fuzzer,address,undefined" : "address,undefined";
  return [...commonFlags, "-g", "-O1", `-fsanitize=${sanitizers}`, "-fno-sanitize-recover=all"];
}

async function sourceFiles(variant: string): Promise<{ c: string[]; h: string[] }> {
  const all = (await readdir(sourceDir)).sort();
  const parserOnly = ["fuzz.c", "message.c", "mp.c"];
  const c = all.filter(
    (f) => f.endsWith(".c") && (variant === "fuzz" ? parserOnly.includes(f) : f !== "fuzz.c"),
  );
  return { c, h: all.filter((f) => f.endsWith(".h")) };
}

async function compile(
  compiler: string,
  flags: string[],
  sources: string[],
  cacheDir: string,
  finalDir: string,
  signal: AbortSignal | undefined,
): Promise<void> {
  await mkdir(cacheDir, { recursive: true });
  const work = await mkdtemp(join(cacheDir, "building-"));
  try {
    await tool(compiler, [...flags, "-o", join(work, "flurry-init"), ...sources], sourceDir, signal);
    await rename(work, finalDir);
  } catch (error) {
    // Another build of the same content was faster: its result is as good as ours.
    if (!(await exists(join(finalDir, "flurry-init")))) throw error;
  } finally {
    await rm(work, { recursive: true, force: true });
  }
}
