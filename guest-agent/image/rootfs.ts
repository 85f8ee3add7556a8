import { copyFile, link, mkdir, readFile, writeFile } from "node:fs/promises";
import { basename, join } from "node:path";
import { FlurryError } from "../../errors/errors.ts";
import type { GuestToolFile } from "../bindings/build.ts";
import type { Deb } from "./apt.ts";
import { commandMark, packageMark, writeHooks } from "./hooks.ts";
import { failure, run } from "./process.ts";
import type { LoadedRecipe } from "./recipe.ts";

export interface RootfsOptions {
  loaded: LoadedRecipe;
  /** Files that every image has. */
  tools: readonly GuestToolFile[];
  debs: Deb[];
  /** Index of `debs` in Debian's Packages format. */
  index: string;
  arch: string;
  /** Directory for the build that every user can reach. */
  scratch: string;
  /** The squashfs file to write. */
  output: string;
  /** Upper bound of every file time, in seconds since 1970. */
  epoch: number;
  onProgress: (fraction: number, detail: string) => void;
}

/**
 * mmdebstrap gets a repository of exactly the packages that were solved for and fetched, and its
 * tar archive goes straight into tar2sqfs. Both as root and without, mmdebstrap works in its own
 * mount and PID namespaces (unshare), so no mount or process outlives it. If the builder dies,
 * standard input ends and the whole process group with it.
 */
const pipeline = `exec 3<&0 < /dev/null
(read -r _; kill -s KILL 0) <&3 > /dev/null 2>&1 &
watcher=$! status=$1 output=$2; shift 2
exec 3<&-
{ rc=0; "$@" || rc=$?; echo "$rc" > "$status"; } | tar2sqfs -q -f -c lz4 "$output"
rc=$?
kill "$watcher"
exit "$rc"
`;

/** Share of the time at which a message of mmdebstrap appears, measured on the built-in recipes. */
const installingShare = 0.3;
const installedShare = 0.85;
const milestones: [RegExp, number, string][] = [
  [/^I: extracting archives/, 0.05, "Unpacking the essential packages"],
  [/^I: installing essential packages/, installingShare, "Installing the essential packages"],
  [/^I: installing remaining packages/, installingShare, "Installing the recipe's packages"],
  [/^I: running --customize-hook/, installedShare, "Running the recipe's commands"],
  [/^I: creating tarball/, 0.9, "Packing the disk"],
];

/**
 * Builds the root file system as a squashfs file.
 *
 * @returns the installed packages and their versions
 */
export async function buildRootfs(
  options: RootfsOptions,
  signal?: AbortSignal,
): Promise<Record<string, string>> {
  const { loaded, scratch, output, epoch } = options;
  const repository = join(scratch, "repository");
  await mkdir(repository, { mode: 0o755 });
  for (const deb of options.debs) await place(deb.path, join(repository, basename(deb.path)));
  await writeFile(join(repository, "Packages"), options.index);
  const hooks = join(scratch, "hooks");
  await mkdir(hooks, { mode: 0o755 });
  await writeHooks(hooks, loaded, options.tools, signal);
  const temporary = join(scratch, "tmp");
  await mkdir(temporary, { mode: 0o755 });

  const names = options.debs.map((deb) => deb.name);
  const wanted = loaded.recipe.packages
    .map((entry) => entry.replace(/[=/].*$/, ""))
    .filter((name) => names.includes(name));
  const status = join(scratch, "status");
  const watcher = watch(options.onProgress, options.debs.length);
  const result = await run(
    "sh",
    [
      ...["-c", pipeline, "sh", status, output, ...privateMounts()],
      ...["mmdebstrap", "--verbose", "--mode=unshare", "--variant=essential", "--format=tar"],
      ...[`--architectures=${options.arch}`, "--skip=cleanup/apt"],
      ...(wanted.length === 0 ? [] : [`--include=${wanted.join(",")}`]),
      `--setup-hook=${join(hooks, "setup.sh")}`,
      ...[`--extract-hook=${join(hooks, "extract.sh")}`, `--customize-hook=${join(hooks, "customize.sh")}`],
      // No suite: the essential packages are those of the repository, whatever its name.
      ...["", "-", `deb [trusted=yes] copy://${repository} ./`],
    ],
    {
      env: { TMPDIR: temporary, SOURCE_DATE_EPOCH: String(epoch) },
      collect: false,
      onLine: watcher.take,
      lifeline: true,
      signal,
    },
  );
  const exitCode = (await readFile(status, "utf8").catch(() => "unknown")).trim();
  if (exitCode !== "0") throw watcher.commandFailure(loaded) ?? failure("mmdebstrap failed", result.tail);
  if (result.exitCode !== 0) throw failure("Cannot write the disk image", result.tail);
  return watcher.packages;
}

/**
 * As root, mmdebstrap's mounts would spread to the host where / is a shared mount, as systemd makes
 * it. Without root a user namespace keeps them apart.
 */
function privateMounts(): string[] {
  return process.getuid?.() === 0 ? ["unshare", "--mount", "--propagation", "private", "--"] : [];
}

/** A hard link where the file systems allow it; never a change to the shared package file. */
async function place(from: string, to: string): Promise<void> {
  try {
    await link(from, to);
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code;
    if (code !== "EXDEV" && code !== "EPERM" && code !== "EMLINK") throw error;
    await copyFile(from, to);
  }
}

/** Follows mmdebstrap's messages: progress, and the output of the command that runs. */
function watch(
  onProgress: RootfsOptions["onProgress"],
  packageCount: number,
): {
  take: (line: string) => void;
  packages: Record<string, string>;
  commandFailure: (loaded: LoadedRecipe) => FlurryError | undefined;
} {
  let command: number | undefined;
  let output: string[] = [];
  let fraction = 0;
  const packages: Record<string, string> = {};
  // Each package is unpacked and set up.
  const installStep = (installedShare - installingShare) / (2 * packageCount);
  return {
    packages,
    take(line) {
      if (line.startsWith(commandMark)) {
        const what = line.slice(commandMark.length).trim();
        command = what === "done" ? undefined : Number(what);
        output = [];
        return;
      }
      if (line.startsWith(packageMark)) {
        const [name, version] = line.slice(packageMark.length).trim().split(" ");
        if (name !== undefined && version !== undefined) packages[name] = version;
        return;
      }
      if (command !== undefined) output.push(line);
      const milestone = milestones.find(([pattern]) => pattern.test(line));
      if (milestone !== undefined) {
        fraction = Math.max(fraction, milestone[1]);
        onProgress(fraction, milestone[2]);
      } else if (/^(Setting up|Unpacking) /.test(line)) {
        fraction = Math.min(installedShare, fraction + installStep);
        onProgress(fraction, line.replace(/ \.\.\.$/, ""));
      }
    },
    commandFailure(loaded) {
      if (command === undefined) return undefined;
      const own = output.filter((line) => !/^[IEW]: /.test(line)).slice(-20);
      const fault = loaded.fault(["commands", command], `Command ${command + 1} of the recipe failed`);
      return new FlurryError("IMAGE_BUILD_FAILED", [fault.message, ...own].join("\n"));
    },
  };
}
