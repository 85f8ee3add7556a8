import { existsSync, readFileSync, statSync } from "node:fs";
import { isRoot } from "../home.ts";

/** The user and groups that a QEMU process runs under. */
export interface VmUser {
  name: string;
  uid: number;
  gid: number;
  /** Group that may open /dev/kvm, if there is one beside root's. */
  kvmGid: number | undefined;
}

/** The device through which QEMU uses KVM. `$FLURRY_KVM` names another node of it. */
export function kvmDevice(): string {
  return process.env.FLURRY_KVM || "/dev/kvm";
}

/** User that the set-up creates for VMs; `nobody` stands in where it is missing. */
export const VM_USER = "flurry-vm";

/**
 * The unprivileged user for QEMU when started as root; undefined when this process is not root
 * (QEMU then runs as the same user).
 */
export function findVmUser(): VmUser | undefined {
  if (!isRoot()) return undefined;
  const passwd = readFileSync("/etc/passwd", "utf8");
  const entry = passwdEntry(passwd, VM_USER) ?? passwdEntry(passwd, "nobody");
  if (!entry) return undefined;
  return { ...entry, kvmGid: kvmGroup() };
}

/** QEMU's own seccomp filter, with every class that it can deny. */
export const SANDBOX_ARGS = [
  "-sandbox",
  "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
] as const;

/**
 * Wraps a command line so that it runs without privileges and dies with its parent.
 * `setpriv` (util-linux) sets all of it before the exec, so QEMU never runs as root, not even while
 * it opens its files. `--pdeathsig` is a convenience; leftovers are also reaped at the next start.
 */
export function confined(argv: readonly string[], user: VmUser | undefined): string[] {
  const options = ["--no-new-privs", "--pdeathsig", "KILL"];
  if (user) {
    options.push("--reuid", String(user.uid), "--regid", String(user.gid));
    options.push(...(user.kvmGid === undefined ? ["--clear-groups"] : ["--groups", String(user.kvmGid)]));
    options.push("--inh-caps=-all", "--bounding-set=-all");
  }
  return ["setpriv", ...options, "--", ...argv];
}

function passwdEntry(passwd: string, name: string): { name: string; uid: number; gid: number } | undefined {
  const fields = passwd
    .split("\n")
    .map((line) => line.split(":"))
    .find((entry) => entry[0] === name);
  if (!fields) return undefined;
  return { name, uid: Number(fields[2]), gid: Number(fields[3]) };
}

/** The group that the device is open to. Root's own is given to no VM. */
function kvmGroup(): number | undefined {
  if (!existsSync(kvmDevice())) return undefined;
  const { gid, mode } = statSync(kvmDevice());
  return gid !== 0 && (mode & 0o060) === 0o060 ? gid : undefined;
}

/** Whether VMs may open the KVM device, under the user that they run as. */
export function mayUseKvm(user: VmUser | undefined): boolean {
  const { uid, gid, mode } = statSync(kvmDevice());
  if ((mode & 0o006) === 0o006) return true;
  if (user) return (uid === user.uid && (mode & 0o600) === 0o600) || user.kvmGid !== undefined;
  if (uid === process.getuid?.() && (mode & 0o600) === 0o600) return true;
  return (process.getgroups?.().includes(gid) ?? false) && (mode & 0o060) === 0o060;
}
