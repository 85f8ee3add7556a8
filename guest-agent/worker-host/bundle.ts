import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdir, mkdtemp, readdir, readFile, rename, rm, stat, writeFile } from "node:fs/promises";
import { homedir, tmpdir } from "node:os";
import { basename, dirname, join, resolve } from "node:path";

/**
 * BAD_ARGUMENT: the worker's sources cannot be bundled, the message says why. REQUIREMENT_MISSING: there
 * is no Bun. ABORTED: the caller's signal. INTERNAL: our own sources cannot be bundled.
 */
export type BundleErrorCode = "BAD_ARGUMENT" | "REQUIREMENT_MISSING" | "ABORTED" | "INTERNAL";

/** Why there is no bundle. */
export class BundleError extends Error {
  readonly code: BundleErrorCode;

  constructor(code: BundleErrorCode, message: string, options: { cause?: unknown } = {}) {
    super(message, options);
    this.name = "BundleError";
    this.code = code;
  }
}

export interface BundleOptions {
  /** The Bun program. @default `$FLURRY_BUN`, or the one that runs this */
  bun?: string | undefined;
  signal?: AbortSignal | undefined;
}

/** One ES module with all that it needs, and a source map in it. */
export interface WorkerBundle {
  code: string;
  /** Of the code, as UTF-8. */
  bytes: number;
  /** SHA-256 of the code, hexadecimal. The same sources give the same one, wherever they lie. */
  hash: string;
}

/** Most bytes of one bundle's code that are read. */
const CODE_MAX = 256 << 20;

/**
 * Bundles a worker's sources into one file for Bun. Reads what the sources import, and runs none of it:
 * Bun's macros are refused.
 *
 * @param entry - path of the worker's module
 * @throws BundleError
 */
export async function bundleWorker(entry: string, options: BundleOptions = {}): Promise<WorkerBundle> {
  const path = resolve(entry);
  if (!(await isFile(path))) throw new BundleError("BAD_ARGUMENT", `There is no worker at ${entry}`);
  const bun = findBun(options);
  // From the entry's directory: its name is in the source map, and the result must not tell where that is.
  const cwd = dirname(path);
  const name = `./${basename(path)}`;
  try {
    const flags = [...buildFlags, ...placeFlags, ...fetchFlags, ...guestFlags, "--sourcemap=inline"];
    const code = asMain(await run(bun, ["build", name, ...flags], cwd, options.signal));
    return { code, bytes: Buffer.byteLength(code), hash: createHash("sha256").update(code).digest("hex") };
  } catch (error) {
    if (error instanceof BundleError) throw error;
    const reason = await reasonOf(error, bun, name, cwd, options.signal);
    throw new BundleError("BAD_ARGUMENT", `Cannot bundle the worker ${entry}: ${reason}`, { cause: error });
  }
}

/** `NODE_ENV` decides what React and many others are made of; a worker's is fixed when it is built. */
const buildFlags = [
  "--target=bun",
  "--format=esm",
  "--no-macros",
  "--define",
  'process.env.NODE_ENV="production"',
];

/** Where a worker's sources were built is nothing that it should see, or that should make it another one. */
const placeFlags = ["--define", '__dirname="/worker"', "--define", '__filename="/worker/worker.js"'];

/** What the guest has itself. */
const guestFlags = ["--external", "flurry:vm"];

/** Where a worker's `Bun.fetch` would go by itself, there is no network; and nothing can take its place in Bun. */
const fetchFlags = ["--define", "Bun.fetch=globalThis.fetch"];

/**
 * `import.meta.main` is true in a worker, which is loaded by the worker host but is the program that the
 * user means. Bun has settled it for all modules but the entry. The length stays, and so the source map.
 */
function asMain(code: string): string {
  const main = "import.meta.main";
  return code.replaceAll(/(?<![\w$."'`])import\.meta\.main(?![\w$])/g, "true".padEnd(main.length));
}

/** What Bun said, shortened; what it could not name itself is looked for. */
async function reasonOf(
  error: unknown,
  bun: string,
  name: string,
  cwd: string,
  signal: AbortSignal | undefined,
): Promise<string> {
  const output = outputOf(error);
  if (!output.includes("multiple output files")) return errorLines(output);
  const addons = await findAssets(bun, name, cwd, signal);
  const names = addons.length > 0 ? addons.join(", ") : "a file beside the code";
  return `native addons and other files beside the code cannot be bundled: ${names}`;
}

/** The files beside the code that a bundle would have: native addons, mostly. */
async function findAssets(
  bun: string,
  name: string,
  cwd: string,
  signal: AbortSignal | undefined,
): Promise<string[]> {
  const work = await mkdtemp(join(tmpdir(), "flurry-bundle-"));
  try {
    await run(
      bun,
      ["build", name, ...buildFlags, ...guestFlags, `--outdir=${work}`, "--asset-naming=[name].[ext]"],
      cwd,
      signal,
    );
    const files = await readdir(work, { recursive: true });
    return files.filter((file) => !file.endsWith(".js"));
  } finally {
    await rm(work, { recursive: true, force: true });
  }
}

/** Bun prints the source around each error; the errors themselves name what is missing. */
function errorLines(output: string): string {
  const lines = output.split("\n");
  const picked = lines.flatMap((line, i) => {
    if (!line.startsWith("error:")) return [];
    const place = lines[i + 1]?.trim() ?? "";
    return [`${line.slice("error:".length).trim()}${place.startsWith("at ") ? ` (${place})` : ""}`];
  });
  return (picked.length > 0 ? picked.join("; ") : output.trim()).slice(0, 2000);
}

export interface BundleHostOptions extends BundleOptions {
  /** @default `$XDG_CACHE_HOME/flurry/worker-host`, or `~/.cache/flurry/worker-host` */
  cacheDir?: string | undefined;
}

/**
 * Bundles `flurry:vm` for Bun programs of a guest.
 *
 * @throws BundleError
 */
export async function bundleVmModule(options: BundleOptions = {}): Promise<string> {
  const from = join(import.meta.dirname, "../bindings/src");
  try {
    return await run(findBun(options), ["build", "./vm.ts", ...buildFlags], from, options.signal);
  } catch (error) {
    if (error instanceof BundleError) throw error;
    throw new BundleError("INTERNAL", `Cannot bundle flurry:vm: ${errorLines(outputOf(error))}`, {
      cause: error,
    });
  }
}

/** The worker host as one file for the image. */
export interface WorkerHostBundle {
  path: string;
  bytes: number;
  /** SHA-256 of the file, hexadecimal. */
  hash: string;
}

/**
 * Bundles the worker host, or finds it in the cache: the key is the hash of its sources, its one
 * dependency's version and Bun's. Builds at the same time do not disturb each other.
 *
 * @throws BundleError
 */
export async function bundleWorkerHost(options: BundleHostOptions = {}): Promise<WorkerHostBundle> {
  const cacheDir = options.cacheDir ?? defaultCacheDir();
  const bun = findBun(options);
  const path = join(cacheDir, `worker-host-${await hostKey(bun, options.signal)}.js`);
  if (!(await isFile(path))) await buildHost(bun, path, cacheDir, options.signal);
  const code = await readFile(path);
  return { path, bytes: code.length, hash: createHash("sha256").update(code).digest("hex") };
}

async function buildHost(
  bun: string,
  path: string,
  cacheDir: string,
  signal: AbortSignal | undefined,
): Promise<void> {
  await mkdir(cacheDir, { recursive: true });
  const work = await mkdtemp(join(cacheDir, "building-"));
  try {
    const flags = [...buildFlags, "--minify-whitespace", "--minify-syntax"];
    const code = await run(bun, ["build", "./main.ts", ...flags], import.meta.dirname, signal);
    await writeFile(join(work, "worker-host.js"), code);
    await rename(join(work, "worker-host.js"), path);
  } catch (error) {
    if (error instanceof BundleError) throw error;
    throw new BundleError("INTERNAL", `Cannot bundle the worker host: ${errorLines(outputOf(error))}`, {
      cause: error,
    });
  } finally {
    await rm(work, { recursive: true, force: true });
  }
}

async function hostKey(bun: string, signal: AbortSignal | undefined): Promise<string> {
  const here = import.meta.dirname;
  const protocol = join(here, "../protocol");
  const hash = createHash("sha256").update(JSON.stringify(buildFlags));
  hash.update(await run(bun, ["--version"], here, signal));
  hash.update(await readFile(join(here, "../../node_modules/msgpackr/package.json")));
  for (const directory of [here, protocol, join(protocol, "worker"), join(here, "../bindings/src")]) {
    for (const file of (await readdir(directory)).filter((name) => name.endsWith(".ts")).sort()) {
      hash.update(`${file}\0`).update(await readFile(join(directory, file)));
    }
  }
  return hash.digest("hex").slice(0, 32);
}

function defaultCacheDir(): string {
  return join(process.env.XDG_CACHE_HOME || join(homedir(), ".cache"), "flurry", "worker-host");
}

function findBun(options: BundleOptions): string {
  const own = process.versions.bun === undefined ? undefined : process.execPath;
  const bun = options.bun ?? (process.env.FLURRY_BUN || own);
  if (bun) return bun;
  throw new BundleError("REQUIREMENT_MISSING", "Cannot bundle a worker without Bun: FLURRY_BUN names none");
}

/** Runs Bun and gives its stdout. @throws BundleError ABORTED, REQUIREMENT_MISSING; else what `execFile` gives */
function run(bun: string, args: string[], cwd: string, signal: AbortSignal | undefined): Promise<string> {
  const env = { ...process.env, NODE_ENV: "production", NO_COLOR: "1" };
  return new Promise((resolve, reject) => {
    execFile(
      bun,
      args,
      { cwd, env, maxBuffer: CODE_MAX, ...(signal ? { signal } : {}) },
      (error, stdout, stderr) => {
        if (error === null) return resolve(stdout);
        if (signal?.aborted)
          return reject(new BundleError("ABORTED", "Bundling was aborted", { cause: error }));
        if (error.code === "ENOENT") {
          return reject(
            new BundleError("REQUIREMENT_MISSING", `There is no Bun at ${bun}`, { cause: error }),
          );
        }
        reject(Object.assign(error, { output: `${stderr}\n${stdout}` }));
      },
    );
  });
}

function outputOf(error: unknown): string {
  return error instanceof Error && "output" in error ? String(error.output) : String(error);
}

async function isFile(path: string): Promise<boolean> {
  return await stat(path).then(
    (info) => info.isFile(),
    () => false,
  );
}
