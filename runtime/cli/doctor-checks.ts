import { execFile } from "node:child_process";
import { close, existsSync, open, readFileSync } from "node:fs";
import { readFile, statfs } from "node:fs/promises";
import { availableParallelism } from "node:os";
import { promisify } from "node:util";
import { codeOf, describeError } from "../../errors/errors.ts";
import { flurryHome, flurryShm, isRoot } from "../home.ts";
import { findProbe, type Requirement, readRequirements } from "../requirements.ts";
import { readVerdict } from "../vm/accelerator.ts";
import { findVmUser, VM_USER } from "../vm/confine.ts";
import { findQemu } from "../vm/qemu-binary.ts";
import { formatBytes } from "./format.ts";

/** One thing that Flurry needs or can use, and how this machine stands. */
export interface Finding {
  name: string;
  /** `missing`: Flurry cannot work without it; `degraded`: it works, but less well; `info`: only told. */
  status: "ok" | "missing" | "degraded" | "info";
  found: string;
  /** What to do, as an exact command where there is one. */
  todo?: string;
}

/** RAM of a guest as the demo boots it, plus what the kernel keeps for itself: less than that is too little. */
const COMFORTABLE_SHM_BYTES = 1024 * 2 ** 20;
/** Images, frozen parents and their descriptors of a first run. */
const COMFORTABLE_DISK_BYTES = 4 * 2 ** 30;

/** Looks at everything; each check reports for itself and none stops the others. */
export async function examine(signal?: AbortSignal): Promise<Finding[]> {
  const findings = await Promise.all([
    runtimes(signal),
    qemu(signal),
    debianPackages(signal),
    acceleration(signal),
    memory(),
    sharedMemory(),
    disk(),
    confinement(signal),
    userfaultfd(),
  ]);
  return findings.flat();
}

async function runtimes(signal?: AbortSignal): Promise<Finding[]> {
  // Looked up first: Deno would start itself in the place of a program called "node".
  const version = async (program: string | undefined) =>
    program === undefined ? undefined : await outputOf(program, ["--version"], signal);
  const bun = process.versions.bun ?? (await version(process.env.FLURRY_BUN ?? findProbe("bun")));
  const deno = process.versions.deno ?? (await version(findProbe("deno")))?.split(" ")[1];
  const node = await version(findProbe("node"));
  const npm = findProbe("npm");
  return [
    { name: "bun", status: "info", found: bun ?? "not found (./flurry installs it)" },
    {
      name: "deno",
      status: "info",
      found: deno ?? "not found (only the tests need it: they bring their own)",
    },
    { name: "node", status: "info", found: node ?? "not found" },
    { name: "npm", status: "info", found: npm ?? "not found (only needed to install Bun)" },
  ];
}

async function qemu(signal?: AbortSignal): Promise<Finding[]> {
  try {
    const binary = await findQemu(signal);
    const found = `${binary.version} (${binary.path})`;
    const newest = newestOffer((await outputOf("apt-cache", ["madison", "qemu-system-x86"], signal)) ?? "");
    const here = binary.major * 1000 + binary.minor;
    if (newest === undefined || newest.rank <= here) return [{ name: "qemu", status: "ok", found }];
    const target = newest.suite.includes("backports") ? `-t ${newest.suite} ` : "";
    return [
      {
        name: "qemu",
        status: "degraded",
        found: `${found}; Debian offers ${newest.version}`,
        todo: `${asRoot()}apt-get install ${target}qemu-system-x86`,
      },
    ];
  } catch (error) {
    const { message } = describeError(error);
    return [{ name: "qemu", status: "missing", found: message, todo: aptInstall(["qemu-system-x86"]) }];
  }
}

/** The newest version in the output of `apt-cache madison`: lines of `package | version | uri suite/component ...`. */
export function newestOffer(madison: string): { version: string; suite: string; rank: number } | undefined {
  let newest: { version: string; suite: string; rank: number } | undefined;
  for (const line of madison.split("\n")) {
    const [, version, source] = line.split("|").map((field) => field.trim());
    const numbers = /^(?:\d+:)?(\d+)\.(\d+)/.exec(version ?? "");
    if (!version || !numbers) continue;
    const suite = (source ?? "").split(" ")[1]?.split("/")[0] ?? "";
    const rank = Number(numbers[1]) * 1000 + Number(numbers[2]);
    if (newest === undefined || rank > newest.rank) newest = { version, suite, rank };
  }
  return newest;
}

async function debianPackages(signal?: AbortSignal): Promise<Finding[]> {
  // QEMU has a check of its own.
  const requirements = readRequirements().filter(
    (requirement) => requirement.package !== "qemu-system-x86" && (requirement.who !== "user" || !isRoot()),
  );
  const names = requirements.map((requirement) => requirement.package);
  const format = ["$", "{Package} $", "{Version}\n"].join("");
  const versions = await outputOf("dpkg-query", ["-W", "-f", format, ...names], signal);
  const versionOf = new Map((versions ?? "").split("\n").map((line) => line.split(" ") as [string, string]));
  return requirements.map((requirement) => packageFinding(requirement, versionOf.get(requirement.package)));
}

function packageFinding(requirement: Requirement, version: string | undefined): Finding {
  const path = findProbe(requirement.probe);
  const { package: name, purpose } = requirement;
  if (path !== undefined) {
    return { name, status: "ok", found: version ? `${version} (${path})` : path };
  }
  const todo = aptInstall([name]);
  if (requirement.who === "test") {
    return { name, status: "degraded", found: `not found: ${purpose} (only ./flurry test needs it)`, todo };
  }
  return { name, status: "missing", found: `not found: ${purpose}`, todo };
}

/** Whether the device opens, and the verdict of the last guest that was booted to try it. */
async function acceleration(signal?: AbortSignal): Promise<Finding[]> {
  const findings = [await kvmDevice(signal)];
  try {
    const verdict = await readVerdict(flurryHome());
    if (verdict !== undefined) {
      const found = `${verdict.accel}, found earlier: ${verdict.reason}`;
      findings.push({ name: "accelerator", status: "info", found });
    }
  } catch (error) {
    findings.push({ name: "accelerator", status: "info", found: describeError(error).message });
  }
  return findings;
}

async function kvmDevice(signal?: AbortSignal): Promise<Finding> {
  const name = "kvm";
  try {
    await promisify(close)(await promisify(open)("/dev/kvm", "r+"));
    return { name, status: "info", found: "/dev/kvm opens; a guest is booted under it before it is used" };
  } catch (error) {
    const found = `/dev/kvm does not open (${codeOf(error) ?? "unknown"}): VMs run under TCG, which is slower`;
    if (codeOf(error) !== "EACCES") return { name, status: "info", found };
    return { name, status: "info", found, todo: `sudo usermod -aG kvm ${await userName(signal)}` };
  }
}

function memory(): Finding[] {
  const fields = new Map(
    readFileSync("/proc/meminfo", "utf8")
      .split("\n")
      .map((line) => line.split(/:\s+|\s+kB/) as [string, string]),
  );
  const bytes = (key: string) => formatBytes(Number(fields.get(key) ?? 0) * 1024);
  return [
    { name: "memory", status: "info", found: `${bytes("MemAvailable")} available of ${bytes("MemTotal")}` },
    { name: "cores", status: "info", found: String(availableParallelism()) },
  ];
}

async function sharedMemory(): Promise<Finding[]> {
  return await space("shared memory", "FLURRY_SHM", flurryShm, COMFORTABLE_SHM_BYTES, (directory) => {
    const mount = process.env.FLURRY_SHM ? directory : "/dev/shm";
    return `${asRoot()}mount -o remount,size=${formatBytes(2 * COMFORTABLE_SHM_BYTES).replace(" GiB", "G")} ${mount}`;
  });
}

async function disk(): Promise<Finding[]> {
  return await space("data directory", "FLURRY_HOME", flurryHome, COMFORTABLE_DISK_BYTES, (directory) => {
    return `Free some of the disk of ${directory}, or set FLURRY_HOME to a directory on a larger one`;
  });
}

async function space(
  name: string,
  variable: string,
  locate: () => string,
  comfortable: number,
  advise: (directory: string) => string,
): Promise<Finding[]> {
  try {
    const directory = locate();
    const { bavail, blocks, bsize } = await statfs(directory);
    const free = bavail * bsize;
    const found = `${directory}: ${formatBytes(free)} free of ${formatBytes(blocks * bsize)}`;
    if (free >= comfortable) return [{ name, status: "ok", found }];
    const wanted = `${found}; ${formatBytes(comfortable)} are wanted`;
    return [{ name, status: "degraded", found: wanted, todo: advise(directory) }];
  } catch (error) {
    const todo = `Set ${variable} to a directory that this user may write`;
    return [{ name, status: "missing", found: describeError(error).message, todo }];
  }
}

/** QEMU as root drops to a user of its own; without root, images are built in a user namespace. */
async function confinement(signal?: AbortSignal): Promise<Finding[]> {
  if (isRoot()) {
    const user = findVmUser();
    if (user?.name === VM_USER) {
      return [{ name: "vm user", status: "ok", found: `${user.name} (uid ${user.uid})` }];
    }
    const todo = `useradd --system --user-group --no-create-home --shell /usr/sbin/nologin ${VM_USER}`;
    if (user) return [{ name: "vm user", status: "degraded", found: `${user.name} stands in`, todo }];
    return [{ name: "vm user", status: "missing", found: "not found", todo }];
  }
  const username = await userName(signal);
  const subuids = await readFile("/etc/subuid", "utf8").catch(() => "");
  if (!subuids.split("\n").some((line) => line.startsWith(`${username}:`))) {
    const todo = `sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 ${username}`;
    return [
      { name: "subordinate ids", status: "missing", found: `none for ${username} in /etc/subuid`, todo },
    ];
  }
  if ((await outputOf("unshare", ["--user", "--map-root-user", "true"], signal)) === undefined) {
    const todo = "sudo sysctl kernel.unprivileged_userns_clone=1";
    return [{ name: "subordinate ids", status: "missing", found: "User namespaces are not allowed", todo }];
  }
  return [{ name: "subordinate ids", status: "ok", found: `a range for ${username}, and user namespaces` }];
}

async function userfaultfd(): Promise<Finding[]> {
  const name = "userfaultfd";
  try {
    const allowed = (await readFile("/proc/sys/vm/unprivileged_userfaultfd", "utf8")).trim() === "1";
    if (allowed) return [{ name, status: "info", found: "for every user: VMs can have lazy memory" }];
    if (isRoot() && existsSync("/dev/userfaultfd")) {
      const found = "VMs' user gets /dev/userfaultfd with the first VM that has lazy memory";
      return [{ name, status: "info", found }];
    }
    const found = "not for VMs, which therefore have no lazy memory (it needs faults of the kernel)";
    const todo = `${asRoot()}sysctl vm.unprivileged_userfaultfd=1`;
    return [{ name, status: "info", found, todo }];
  } catch (error) {
    return [{ name, status: "info", found: `not in this kernel (${codeOf(error) ?? "unknown"})` }];
  }
}

/** Not os.userInfo(): its name is that of $USER on Bun. */
async function userName(signal?: AbortSignal): Promise<string> {
  return (await outputOf("id", ["-un"], signal)) ?? String(process.getuid?.());
}

/** What a program prints, or undefined where it is missing or fails. */
async function outputOf(program: string, args: string[], signal?: AbortSignal): Promise<string | undefined> {
  try {
    const options = { timeout: 20_000, ...(signal === undefined ? {} : { signal }) };
    return (await promisify(execFile)(program, args, options)).stdout.trim();
  } catch (error) {
    signal?.throwIfAborted();
    // dpkg-query fails when one of the packages is not there and prints the others all the same.
    if (typeof error === "object" && error !== null && "stdout" in error && error.stdout !== "") {
      return String(error.stdout).trim();
    }
    return undefined;
  }
}

function aptInstall(packages: string[]): string {
  return `${asRoot()}apt-get install --no-install-recommends ${packages.join(" ")}`;
}

function asRoot(): string {
  return isRoot() ? "" : "sudo ";
}
