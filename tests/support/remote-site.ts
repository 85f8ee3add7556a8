import { execFile } from "node:child_process";
import { cpSync, existsSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { promisify } from "node:util";
import { codeOf } from "../../errors/errors.ts";
import type { Image } from "../../guest-agent/image/mod.ts";
import { PageTable } from "../../memserver/image/page-table.ts";
import { PAGE_BYTES } from "../../memserver/stream/format.ts";
import { flurryHome } from "../../runtime/home.ts";
import { processesOf } from "../../runtime/vm/owner.ts";
import { type CliOptions, type CliResult, type CliRun, CliSandbox, root } from "./cli.ts";
import { type NetworkHost, networkHosts } from "./network-hosts.ts";
import { baseImage, temporaryDirectory } from "./vm.ts";

const FLURRY = [join(root, "flurry")];

/**
 * Options of a parent with a file that no compression makes smaller: 12 MiB of random bytes, beside
 * what they should hash to.
 */
export const NOISY = [
  ...["--image", "base", "--memory", "160", "--warm"],
  "head -c 12582912 /dev/urandom > /run/noise; sha256sum < /run/noise > /run/expected",
];
/** Shell script for a child of it: what the file hashes to, and what it should. */
export const CHECK_NOISE = "sha256sum < /run/noise; cat /run/expected";

/** A frozen parent in a data directory. */
export interface ParentOnDisk {
  /** Of its descriptor. */
  hash: string;
  dir: string;
  /** File of its memory image. */
  memory: string;
}

/** What has passed the link of a host since it has one, in bytes on the wire. */
export interface Traffic {
  sent: number;
  received: number;
}

/** Flurry on a host of a test's network, with a data directory of its own that holds one image. */
export class RemoteSite implements AsyncDisposable {
  readonly host: NetworkHost;
  readonly sandbox = new CliSandbox();
  readonly #keys: string;

  /** @param keys - directory of the keys that it has, which need not be there yet */
  constructor(host: NetworkHost, image: Image, keys: string) {
    this.host = host;
    this.#keys = keys;
    const images = join(this.home, "images");
    for (const name of [basename(image.dir), "by-name", "by-key", "by-disk"])
      cpSync(join(dirname(image.dir), name), join(images, name), { recursive: true });
    const verdict = join(flurryHome(), "accelerator.json");
    if (existsSync(verdict)) cpSync(verdict, join(this.home, "accelerator.json"));
  }

  /** Its data directory. */
  get home(): string {
    return this.sandbox.directory;
  }

  /** What its programs have in their environment beside this process's. */
  get env(): Record<string, string> {
    const { run, shm } = this.sandbox;
    return { FLURRY_HOME: this.home, FLURRY_RUN: run, FLURRY_SHM: shm, FLURRY_KEYS: this.#keys };
  }

  /** Starts a command of Flurry on this host. */
  start(args: readonly string[], options: CliOptions = {}): CliRun {
    const { program = FLURRY, env } = options;
    return this.sandbox.start(args, {
      ...options,
      program: this.host.command(program),
      env: { ...this.env, ...env },
    });
  }

  /** Runs a command of Flurry on this host to its end. */
  flurry(args: readonly string[], options: CliOptions = {}): Promise<CliResult> {
    return this.start(args, options).ended;
  }

  /** `flurry memserver`, when it listens. @param home - data directory */
  async memserver(home = this.home): Promise<RemoteMemserver> {
    const args = ["memserver", "--listen", `${this.host.address}:0`, "--json"];
    const run = this.start(args, { env: { FLURRY_HOME: home } });
    const [, port] = await run.until(/"event":"ready".*"port":(\d+)/);
    return new RemoteMemserver(run, `${this.host.address}:${port}`);
  }

  /** The frozen parents that it has. */
  parents(): ParentOnDisk[] {
    const dir = join(this.home, "parents");
    if (!existsSync(dir)) return [];
    const hashes = readdirSync(dir).filter((name) => /^[0-9a-f]{64}$/.test(name));
    return hashes.map((hash) => ({ hash, dir: join(dir, hash), memory: join(dir, hash, "memory") }));
  }

  /** Files of parents that are on their way here, or have been left behind. */
  unfinished(): string[] {
    const dir = join(this.home, "parents");
    return existsSync(dir) ? readdirSync(dir).filter((name) => name.startsWith(".")) : [];
  }

  /** All that commands have left behind that have ended. */
  leftovers(): string[] {
    return [...this.sandbox.leftovers(), ...this.unfinished()];
  }

  forgetParents(): void {
    rmSync(join(this.home, "parents"), { recursive: true, force: true });
  }

  async traffic(): Promise<Traffic> {
    const show = ["-n", this.host.name, "-s", "-j", "link", "show", "eth0"];
    const [link] = JSON.parse((await promisify(execFile)("ip", show)).stdout);
    return { sent: link.stats64.tx.bytes, received: link.stats64.rx.bytes };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.sandbox[Symbol.asyncDispose]();
  }
}

/** Sites on one network that trust each other, and nothing else in this world. */
export interface RemoteSites extends AsyncDisposable {
  sites: RemoteSite[];
  /** A directory with keys that are not theirs. */
  otherKeys: string;
}

export async function remoteSites(count: number): Promise<RemoteSites> {
  const image = await baseImage();
  await using stack = new AsyncDisposableStack();
  const { path } = stack.use(temporaryDirectory());
  const { hosts } = stack.use(await networkHosts(count));
  const keys = join(path, "keys");
  const sites = hosts.map((host) => stack.use(new RemoteSite(host, image, keys)));
  const owned = stack.move();
  return { sites, otherKeys: join(path, "other-keys"), [Symbol.asyncDispose]: () => owned.disposeAsync() };
}

/** A memserver that serves other hosts. */
export class RemoteMemserver implements AsyncDisposable {
  /** `HOST:PORT`. */
  readonly address: string;
  readonly run: CliRun;

  constructor(run: CliRun, address: string) {
    this.run = run;
    this.address = address;
  }

  async kill(): Promise<void> {
    this.run.kill("SIGKILL");
    await this.run.ended;
  }

  /** Ends it as people do. Returns its exit status. */
  async stop(): Promise<number | null> {
    this.run.kill("SIGTERM");
    return (await this.run.ended).status;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.kill();
  }
}

/** Bytes of the pages of a parent's memory that are not zero. */
export function dataBytes(parent: ParentOnDisk): number {
  const table = new PageTable(readFileSync(join(parent.dir, "pages")));
  let pages = 0;
  for (let page = 0; page < table.pages; page++) if (!table.isZero(page)) pages += 1;
  return pages * PAGE_BYTES;
}

/** Waits for something that other processes do; fails after so many milliseconds, which is no expectation. */
export async function until<T>(
  look: () => T | Promise<T>,
  what: string,
  ms = 60_000,
): Promise<NonNullable<T>> {
  for (const end = performance.now() + ms; performance.now() < end; ) {
    const found = await look();
    if (found) return found;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  throw new Error(`Not in ${ms} ms: ${what}`);
}

/** Command line of a process; empty when it is gone. */
export function commandLineOf(pid: number): string[] {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, "latin1").split("\0");
  } catch (error) {
    if (codeOf(error) === "ENOENT" || codeOf(error) === "ESRCH") return [];
    throw error;
  }
}

/** Process ids of the memservers among the processes of a run directory (`$FLURRY_RUN`). */
export function memserversOf(run: string): number[] {
  return processesOf(run).filter((pid) =>
    commandLineOf(pid).some((word) => word.endsWith("memserver/main.ts")),
  );
}
