import { chmod, cp, mkdir, writeFile } from "node:fs/promises";
import { dirname, join, resolve } from "node:path";
import type { GuestToolFile } from "../bindings/build.ts";
import { runOrFail } from "./process.ts";
import type { LoadedRecipe, Recipe } from "./recipe.ts";

/** What is of no use in a VM without people: dropped unless the recipe keeps it. */
const dropped = [
  "/usr/share/doc",
  "/usr/share/man",
  "/usr/share/info",
  "/usr/share/locale",
  "/usr/share/lintian",
];

/** Lines that the hooks write to tell which command of the recipe runs. */
export const commandMark = "flurry-command:";
/** Begin of the lines that name an installed package and its version. */
export const packageMark = "flurry-package:";

/*
 * The hooks are fixed texts. All that a recipe says reaches them as files, never as shell text of
 * theirs, so nothing in a recipe can break out into the host's side of the build.
 */

/**
 * Before anything is unpacked: the links of a merged /usr, which bookworm's essential packages need
 * and expect others to make. (Later releases have the same links in base-files.)
 */
const setupHook = `#!/bin/sh
set -eu
root=$1 here=\${0%/*}
for deb in "$here"/../repository/usr-is-merged_*.deb; do
  [ -f "$deb" ] || continue
  for name in bin sbin lib lib64; do
    mkdir -p "$root/usr/$name"
    ln -s "usr/$name" "$root/$name"
  done
done
`;

/** After mmdebstrap unpacked the essential packages, before dpkg installs them properly. */
const extractHook = `#!/bin/sh
set -eu
root=$1 here=\${0%/*}
# dpkg puts back what the recipe keeps.
${dropped.map((path) => `rm -rf "$root${path}"`).join("\n")}
mkdir -p "$root/etc/dpkg/dpkg.cfg.d"
cp "$here/dpkg.cfg" "$root/etc/dpkg/dpkg.cfg.d/90flurry"
`;

const customizeHook = `#!/bin/sh
set -eu
root=$1 here=\${0%/*}
chroot "$root" /bin/sh -eu < "$here/settle.sh"
if [ -f "$here/files.tar" ]; then
  # Within the chroot, so that a symbolic link there cannot lead out of it.
  chroot "$root" tar -x -C / --keep-directory-symlink --no-overwrite-dir --numeric-owner < "$here/files.tar"
fi
# What a task leaves here goes to the host.
chroot "$root" mkdir -p /out
for command in "$here"/commands/*; do
  [ -f "$command" ] || continue
  echo "${commandMark} \${command##*/}" >&2
  chroot "$root" /usr/bin/env -i "SOURCE_DATE_EPOCH=$SOURCE_DATE_EPOCH" HOME=/root LC_ALL=C.UTF-8 \\
    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive \\
    /bin/sh -ec "$(cat "$command")" < /dev/null
  echo "${commandMark} done" >&2
done
chroot "$root" dpkg-query --show --showformat '${packageMark} \${Package} \${Version}\\n' >&2
chroot "$root" /usr/bin/env "SOURCE_DATE_EPOCH=$SOURCE_DATE_EPOCH" /bin/sh -eu < "$here/clean.sh"
`;

/** The host's name stays on the host. */
const settleScript = `echo flurry > /etc/hostname
printf '127.0.0.1 localhost\\n::1 localhost ip6-localhost ip6-loopback\\n' > /etc/hosts
`;

/** What only the build needed, and what would differ from one build to the next. */
const cleanScript = `rm -f /etc/resolv.conf
: > /etc/resolv.conf
rm -f /etc/dpkg/dpkg.cfg.d/90flurry /etc/apt/sources.list /etc/apt/trusted.gpg
rm -rf /var/lib/apt /etc/apt/sources.list.d /etc/apt/preferences.d /etc/apt/trusted.gpg.d /etc/apt/auth.conf.d
find /etc/apt/apt.conf.d -type f ! -name 00mmdebstrap -delete
find /var/cache /var/log -type f -delete
rm -f /var/lib/dpkg/*-old /var/lib/dpkg/lock* /etc/.pwd.lock /etc/passwd- /etc/group- /etc/shadow- /etc/gshadow-
rm -f /var/lib/systemd/random-seed /var/lib/systemd/catalog/database
find /usr -name '*.pyc' -delete
if [ -f /etc/shadow ]; then
  # The day of the last password change is the day of the build.
  sed -i -E "s/^([^:]*:[^:]*:)[0-9]+:/\\1$((SOURCE_DATE_EPOCH / 86400)):/" /etc/shadow
fi
`;

/**
 * Writes the hooks and the data that they read into `directory`, which every user must be able
 * to reach: without root the hooks run as a subordinate user.
 *
 * @throws FlurryError RECIPE_INVALID if a file that the recipe copies cannot be read
 */
export async function writeHooks(
  directory: string,
  loaded: LoadedRecipe,
  tools: readonly GuestToolFile[],
  signal?: AbortSignal,
): Promise<void> {
  const { recipe } = loaded;
  await mkdir(join(directory, "commands"), { recursive: true });
  const scripts = {
    "setup.sh": setupHook,
    "extract.sh": extractHook,
    "customize.sh": customizeHook,
    "settle.sh": settleScript,
    "clean.sh": cleanScript,
  };
  for (const [name, text] of Object.entries(scripts)) {
    await writeFile(join(directory, name), text);
    await chmod(join(directory, name), 0o755);
  }
  await writeFile(join(directory, "dpkg.cfg"), dpkgConfig(recipe));
  for (const [index, command] of recipe.commands.entries()) {
    const name = String(index).padStart(4, "0");
    await writeFile(join(directory, "commands", name), `${exports(recipe)}${command}\n`);
  }
  if (recipe.files.length + tools.length > 0) await packFiles(directory, loaded, tools, signal);
}

/** Paths for `keep` override the drops, since for dpkg the last match counts. */
function dpkgConfig(recipe: Recipe): string {
  const lines = [
    // The chroot is thrown away if the machine stops in mid-build.
    "force-unsafe-io",
    ...dropped.map((path) => `path-exclude=${path}/*`),
    ...recipe.keep.flatMap((path) =>
      [...parents(path), path, `${path}/*`].map((kept) => `path-include=${kept}`),
    ),
  ];
  return `${lines.join("\n")}\n`;
}

/** The directories above a path: dpkg does not make what is excluded, even if something below is kept. */
function parents(path: string): string[] {
  const names = path.split("/").slice(1, -1);
  return names.map((_name, index) => `/${names.slice(0, index + 1).join("/")}`);
}

function exports(recipe: Recipe): string {
  return Object.entries(recipe.env)
    .map(([name, value]) => `export ${name}=${shellQuote(value)}\n`)
    .join("");
}

function shellQuote(text: string): string {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}

/** Stages the recipe's files and packs them as a tar archive that belongs to root. */
async function packFiles(
  directory: string,
  loaded: LoadedRecipe,
  tools: readonly GuestToolFile[],
  signal: AbortSignal | undefined,
): Promise<void> {
  const staging = join(directory, "staging");
  await mkdir(staging, { mode: 0o755 });
  // The recipe's come last: it may have a file of its own in place of one of these.
  for (const { to, from, mode } of tools) {
    await mkdir(dirname(join(staging, to)), { recursive: true, mode: 0o755 });
    await cp(from, join(staging, to));
    await chmod(join(staging, to), Number.parseInt(mode, 8));
  }
  for (const [index, file] of loaded.recipe.files.entries()) {
    const to = join(staging, file.to);
    await mkdir(dirname(to), { recursive: true, mode: 0o755 });
    try {
      if (file.content !== undefined) await writeFile(to, file.content);
      else
        await cp(resolve(loaded.directory, file.from ?? ""), to, {
          recursive: true,
          dereference: false,
          verbatimSymlinks: true,
        });
    } catch (cause) {
      throw loaded.fault(
        ["files", index, "from"],
        `Cannot copy "${file.from ?? file.to}": ${(cause as Error).message}`,
        {
          cause,
        },
      );
    }
    if (file.mode !== undefined) await chmod(to, Number.parseInt(file.mode, 8));
    else if (file.content !== undefined) await chmod(to, 0o644);
  }
  const archive = join(directory, "files.tar");
  const fixed = ["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--mtime=@0", "--format=pax"];
  const pax = "--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime";
  await runOrFail("tar", ["-c", "-f", archive, "-C", staging, ...fixed, pax, "."], { signal });
  await chmod(archive, 0o644);
}
