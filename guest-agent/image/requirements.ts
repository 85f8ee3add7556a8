import { access, constants, readFile } from "node:fs/promises";
import { delimiter, join } from "node:path";
import { FlurryError } from "../../errors/errors.ts";
import { debianPackageOf, runOrFail } from "./process.ts";

const programs = ["apt-get", "dpkg-deb", "flock", "mmdebstrap", "tar", "tar2sqfs", "xz", "zstd"];
/** Debian's own ranges have this size; a chroot has users up to "nobody", 65534. */
const neededIds = 65_536;

/**
 * Checks that images can be built here.
 *
 * @throws FlurryError REQUIREMENT_MISSING that names all that is missing and what to do
 */
export async function checkRequirements(): Promise<void> {
  const isRoot = process.getuid?.() === 0;
  const wanted = isRoot ? programs : [...programs, "newuidmap", "newgidmap"];
  const missing: string[] = [];
  for (const program of wanted) if (!(await isInstalled(program))) missing.push(program);
  if (missing.length > 0) {
    const packages = [...new Set(missing.map(debianPackageOf))].join(" ");
    throw new FlurryError("REQUIREMENT_MISSING", `Cannot build images: ${missing.join(", ")} not installed`, {
      hint: `As root: apt-get install ${packages}`,
    });
  }
  if (!isRoot) await checkUserNamespaces();
}

/** Without root, mmdebstrap needs a user namespace with a range of subordinate ids. */
async function checkUserNamespaces(): Promise<void> {
  // Not os.userInfo(): its name is that of $USER on Bun.
  const username = (await runOrFail("id", ["-un"])).trim();
  const uid = process.getuid?.();
  for (const file of ["/etc/subuid", "/etc/subgid"]) {
    const text = await readFile(file, "utf8").catch(() => "");
    if (largestRange(text, [username, String(uid)]) >= neededIds) continue;
    throw new FlurryError(
      "REQUIREMENT_MISSING",
      `Cannot build images without root: ${file} gives user "${username}" no range of ${neededIds} ids`,
      { hint: `As root: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 ${username}` },
    );
  }
  const switches = [
    ["/proc/sys/kernel/unprivileged_userns_clone", "kernel.unprivileged_userns_clone=1"],
    ["/proc/sys/user/max_user_namespaces", "user.max_user_namespaces=10000"],
  ] as const;
  for (const [path, setting] of switches) {
    const value = await readFile(path, "utf8").catch(() => "unknown");
    if (value.trim() !== "0") continue;
    throw new FlurryError(
      "REQUIREMENT_MISSING",
      `Cannot build images without root: ${path} forbids user namespaces`,
      {
        hint: `As root: sysctl -w ${setting}`,
      },
    );
  }
}

/** The largest number of ids that subuid(5) text gives to any of the names. */
export function largestRange(text: string, names: string[]): number {
  const counts = text
    .split("\n")
    .map((line) => line.split(":"))
    .filter(([name]) => name !== undefined && names.includes(name))
    .map(([, , count]) => Number(count));
  return Math.max(0, ...counts);
}

async function isInstalled(program: string): Promise<boolean> {
  // Debian's users have no sbin in their path, but what we call may lie there.
  const directories = [...(process.env.PATH ?? "").split(delimiter), "/usr/sbin", "/sbin"];
  for (const directory of directories) {
    const found = await access(join(directory, program), constants.X_OK).then(
      () => true,
      () => false,
    );
    if (found) return true;
  }
  return false;
}
