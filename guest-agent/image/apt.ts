import { Buffer } from "node:buffer";
import { mkdir, open, readFile, stat, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { FlurryError } from "../../errors/errors.ts";
import { type AptSource, type HostApt, isDebianOrigin, sourcesFor } from "./apt-sources.ts";
import {
  dependencies,
  errorLine,
  field,
  nearestName,
  olderThan,
  parseUris,
  withoutStatus,
} from "./apt-text.ts";
import { failure, type RunOptions, run, runOrFail } from "./process.ts";
import type { LoadedRecipe } from "./recipe.ts";

/** A package file that apt fetched and checked against Debian's signed index. */
export interface Deb {
  name: string;
  version: string;
  path: string;
}

/** The oldest kernel that is taken where backports have a newer one: 6.12 knows VMGENID. */
const preferredKernel = [6, 12] as const;
const usrIsMerged = "usr-is-merged";

/**
 * apt with a configuration and state of its own under `directory`, so that it needs no root,
 * leaves the host's apt alone and sees nothing but Debian's packages.
 */
export class PrivateApt {
  readonly #config: string;
  readonly #debs: string;
  readonly #directory: string;
  readonly #suite: string;
  readonly #host: HostApt;
  readonly #signal: AbortSignal | undefined;
  #sources: AptSource[];

  private constructor(
    directory: string,
    debs: string,
    host: HostApt,
    suite: string,
    signal: AbortSignal | undefined,
  ) {
    this.#directory = directory;
    this.#config = join(directory, "apt.conf");
    this.#debs = debs;
    this.#host = host;
    this.#suite = suite;
    this.#sources = sourcesFor(host, suite);
    this.#signal = signal;
  }

  /** Sets apt up. `debs` is the directory of fetched packages; images of one home share it. */
  static async open(
    options: { directory: string; debs: string; host: HostApt; suite: string },
    signal?: AbortSignal,
  ): Promise<PrivateApt> {
    const apt = new PrivateApt(options.directory, options.debs, options.host, options.suite, signal);
    for (const path of ["lists/partial", "keys", "nothing/partial"]) {
      await mkdir(join(options.directory, path), { recursive: true });
    }
    await mkdir(join(options.debs, "partial"), { recursive: true });
    for (const path of ["status", "preferences"]) await writeIfNew(join(options.directory, path), "");
    await apt.#configure();
    return apt;
  }

  /**
   * Fetches the package lists. Without the network, lists of an earlier time are used.
   *
   * @returns a warning if the lists could not be renewed
   */
  async update(onLine: (line: string) => void): Promise<string | undefined> {
    const result = await this.#run("apt-get", ["update", "-q", "--error-on=any"], { collect: false, onLine });
    const foreign = await this.#dropForeignSources();
    if (foreign) return await this.update(onLine);
    if (result.exitCode === 0) return undefined;
    if (!(await this.#hasLists())) throw failure("Cannot fetch Debian's package lists", result.tail);
    return `Cannot renew Debian's package lists, using the ones at hand: ${errorLine(result.tail)}`;
  }

  /**
   * Solves for the essential packages and those of the recipe, fetches what is missing.
   *
   * @throws FlurryError RECIPE_INVALID at the line of a package that cannot be had
   */
  async fetch(loaded: LoadedRecipe, onProgress: (fraction: number, detail: string) => void): Promise<Deb[]> {
    const known = new Set((await this.#runOrFail("apt-cache", ["pkgnames"])).split("\n"));
    this.#checkNames(loaded, known);
    // mmdebstrap merges /usr itself; otherwise apt would take usrmerge, and with it all of Perl.
    const merged = known.has(usrIsMerged) ? [usrIsMerged] : [];
    const wanted = [this.#essential(), ...merged, ...loaded.recipe.packages];
    const files = await this.#solve(wanted, loaded);
    const result = await this.#run(
      "apt-get",
      ["install", "-y", "-qq", "--download-only", "-o", "APT::Status-Fd=1", ...wanted],
      {
        collect: false,
        onLine(line) {
          const status = /^dlstatus:\d+:([\d.]+):(.*)$/.exec(line);
          if (status !== null) onProgress(Number(status[1]) / 100, status[2] ?? "");
        },
      },
    );
    if (result.exitCode !== 0) throw failure("Cannot fetch Debian packages", withoutStatus(result.tail));
    return files.map((file) => this.#deb(file));
  }

  /** Fetches the kernel (and its modules, where they are packages of their own). */
  async fetchKernel(loaded: LoadedRecipe): Promise<Deb[]> {
    const { package: name, suite } = loaded.recipe.kernel;
    const found = await this.#kernelRecord(name, suite, loaded);
    const parts = dependencies(found.record, found.version);
    const wanted = parts.length === 0 ? [`${name}=${found.version}`] : parts;
    // The image names its modules package, if it has one.
    for (const part of [...wanted]) {
      const record = await this.#show(part);
      wanted.push(...dependencies(record, found.version).filter((more) => !wanted.includes(more)));
    }
    const args = ["download", "-qq", ...wanted];
    const listing = await this.#runOrFail("apt-get", ["--print-uris", ...args]);
    const files = parseUris(listing);
    const result = await this.#run("apt-get", args, { cwd: this.#debs, collect: false });
    if (result.exitCode !== 0) throw failure(`Cannot fetch the kernel ${wanted.join(", ")}`, result.tail);
    return files.map((file) => this.#deb(file));
  }

  /** A Packages index (repository format, flat) of exactly these files, for mmdebstrap. */
  async index(debs: Deb[]): Promise<string> {
    const names = debs.map((deb) => `${deb.name}=${deb.version}`);
    const text = await this.#runOrFail("apt-cache", ["show", "--no-all-versions", ...names]);
    const files = new Map(debs.map((deb) => [`${deb.name}=${deb.version}`, deb.path]));
    const records: string[] = [];
    for (const record of text.split("\n\n")) {
      const key = `${field(record, "Package")}=${field(record, "Version")}`;
      const path = files.get(key);
      if (path === undefined) continue;
      files.delete(key);
      records.push(
        record.trim().replace(/^Filename:.*$/m, `Filename: ./${path.slice(path.lastIndexOf("/") + 1)}`),
      );
    }
    if (files.size > 0)
      throw new FlurryError("IMAGE_BUILD_FAILED", `apt does not describe ${[...files.keys()].join(", ")}`);
    return `${records.join("\n\n")}\n`;
  }

  async #configure(): Promise<void> {
    const dir = this.#directory;
    const lines = [
      ...this.#host.acquire,
      `Dir "${dir}";`,
      // The host's own hooks and sources stay out.
      'Dir::Etc::main "/dev/null";',
      'Dir::Etc::parts "/dev/null";',
      `Dir::Etc::sourcelist "${join(dir, "sources.list")}";`,
      'Dir::Etc::sourceparts "/dev/null";',
      `Dir::Etc::preferences "${join(dir, "preferences")}";`,
      'Dir::Etc::preferencesparts "/dev/null";',
      `Dir::State "${dir}";`,
      `Dir::State::lists "${join(dir, "lists")}";`,
      `Dir::State::status "${join(dir, "status")}";`,
      `Dir::Cache "${dir}";`,
      `Dir::Cache::archives "${this.#debs}";`,
      `Dir::Log "${dir}";`,
      `APT::Architecture "${this.#host.arch}";`,
      `APT::Architectures "${this.#host.arch}";`,
      'APT::Install-Recommends "false";',
      // As mmdebstrap has it: apt itself is not essential.
      'pkgCacheGen::ForceEssential ",";',
      'APT::Get::AllowUnauthenticated "false";',
      'Acquire::Languages "none";',
      'Acquire::Retries "3";',
    ];
    // As root apt fetches as _apt, which must be able to reach the directory.
    if (!(await reachable(dir))) lines.push('APT::Sandbox::User "root";');
    await writeIfNew(this.#config, `${lines.join("\n")}\n`);
    const sources = await Promise.all(this.#sources.map((source, index) => this.#sourceLine(source, index)));
    await writeIfNew(join(dir, "sources.list"), `${sources.join("\n")}\n`);
  }

  async #sourceLine(source: AptSource, index: number): Promise<string> {
    let signedBy = source.signedBy;
    if (signedBy?.includes("BEGIN PGP")) {
      const path = join(this.#directory, "keys", `source-${index}.asc`);
      await writeFile(path, signedBy);
      signedBy = path;
    }
    const options = [`arch=${this.#host.arch}`, ...(signedBy === undefined ? [] : [`signed-by=${signedBy}`])];
    return `deb [${options.join(" ")}] ${source.uri} ${source.release} ${source.component}`;
  }

  /** Now that the releases are fetched, they say whose they are. */
  async #dropForeignSources(): Promise<boolean> {
    const format = "$(RELEASE)\t$(REPO_URI)\t$(ORIGIN)";
    const listing = await this.#runOrFail("apt-get", [
      "indextargets",
      "--format",
      format,
      "Identifier: Packages",
    ]);
    const foreign = new Set<string>();
    for (const line of listing.split("\n")) {
      const [release, uri, origin] = line.split("\t");
      if (origin !== undefined && !origin.startsWith("$(") && !isDebianOrigin(origin))
        foreign.add(`${uri} ${release}`);
    }
    const kept = this.#sources.filter((source) => !foreign.has(`${source.uri} ${source.release}`));
    if (kept.length === this.#sources.length) return false;
    this.#sources = kept;
    await this.#configure();
    return true;
  }

  async #hasLists(): Promise<boolean> {
    const names = await this.#runOrFail("apt-cache", ["pkgnames", "base-files"]);
    return names.trim() !== "";
  }

  /** Only names that exist: apt would take others for patterns and install what happens to match. */
  #checkNames(loaded: LoadedRecipe, known: Set<string>): void {
    for (const [index, entry] of loaded.recipe.packages.entries()) {
      const name = entry.replace(/[=/].*$/, "");
      if (known.has(name)) continue;
      throw loaded.fault(["packages", index], `Package "${name}" does not exist in Debian ${this.#suite}`, {
        hint: nearestName(name, known),
      });
    }
  }

  /** Names of all the package files that the wanted packages need. */
  async #solve(wanted: string[], loaded: LoadedRecipe): Promise<string[]> {
    // An empty archive directory, since apt leaves out what it has already.
    const nothing = join(this.#directory, "nothing");
    const args = ["install", "--print-uris", "-qq", "-o", `Dir::Cache::archives=${nothing}`, ...wanted];
    const result = await this.#run("apt-get", args);
    if (result.exitCode === 0) return parseUris(result.stdout);
    const reason = errorLine(result.tail);
    for (const [index, entry] of loaded.recipe.packages.entries()) {
      const name = entry.replace(/[=/].*$/, "");
      const words = reason.split(/[\s'"‘’]+/);
      if (words.includes(name) || words.includes(entry)) throw loaded.fault(["packages", index], reason);
    }
    throw loaded.fault(["packages"], [result.stdout.trim(), reason].join("\n").trim());
  }

  #essential(): string {
    return `?narrow(?or(?archive(^${this.#suite}$),?codename(^${this.#suite}$)),?architecture(${this.#host.arch}),?essential)`;
  }

  async #kernelRecord(
    name: string,
    suite: string | undefined,
    loaded: LoadedRecipe,
  ): Promise<{ record: string; version: string }> {
    const backports = `${this.#suite}-backports`;
    const own = await this.#show(name, suite);
    const version = field(own, "Version");
    if (version === undefined) {
      throw loaded.fault(["kernel"], `Package "${name}" does not exist in Debian ${suite ?? this.#suite}`);
    }
    const isOld = suite === undefined && olderThan(version, preferredKernel);
    if (!isOld || !this.#sources.some((source) => source.release === backports))
      return { record: own, version };
    const newer = await this.#show(name, backports);
    const newerVersion = field(newer, "Version");
    return newerVersion === undefined ? { record: own, version } : { record: newer, version: newerVersion };
  }

  /** The index entry of the candidate version, empty if there is none. */
  async #show(name: string, release?: string): Promise<string> {
    const target = release === undefined ? [] : ["-o", `APT::Default-Release=${release}`];
    const result = await this.#run("apt-cache", ["show", "--no-all-versions", ...target, name]);
    return result.exitCode === 0 ? result.stdout : "";
  }

  #deb(file: string): Deb {
    const [name, version] = file.split("_");
    return { name: name ?? "", version: decodeURIComponent(version ?? ""), path: join(this.#debs, file) };
  }

  #run(program: string, args: string[], options: RunOptions = {}): ReturnType<typeof run> {
    return run(program, args, { ...options, env: { APT_CONFIG: this.#config }, signal: this.#signal });
  }

  #runOrFail(program: string, args: string[]): Promise<string> {
    return runOrFail(program, args, { env: { APT_CONFIG: this.#config }, signal: this.#signal });
  }
}

/** Leaves a file alone that has the text already: apt's cache is valid as long as its files are not touched. */
async function writeIfNew(path: string, text: string): Promise<void> {
  const present = await readFile(path, "utf8").catch(() => undefined);
  if (present !== text) await writeFile(path, text);
}

async function reachable(path: string): Promise<boolean> {
  if (process.getuid?.() !== 0) return true;
  for (let at = path; ; at = dirname(at)) {
    if (((await stat(at)).mode & 0o001) === 0) return false;
    if (at === dirname(at)) return true;
  }
}

/** Time at which a package was built, in seconds since 1970: the time in its ar header (deb(5)). */
export async function debTime(path: string): Promise<number> {
  await using file = await open(path);
  const { buffer } = await file.read(Buffer.alloc(36), 0, 36, 0);
  const head = buffer.toString("latin1");
  return head.startsWith("!<arch>\n") ? Number(head.slice(24, 36).trim()) : 0;
}
