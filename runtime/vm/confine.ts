import { readFileSync } from "node:fs";
import { isRoot } from "../home.ts";

/** The user and groups that a QEMU process runs under. */
export interface VmUser {
  name: string;
  uid: number;
  gid: number;
  /** Group that may open /dev/kvm, if this host has one. */
  kvmGid: number | undefined;
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
  return { ...entry, kvmGid: groupId(readFileSync("/etc/group", "utf8"), "kvm") };
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

function groupId(group: string, name: string): number | undefined {
  const fields = group
    .split("\n")
    .map((line) => line.split(":"))
    .find((entry) => entry[0] === name);
  return fields ? Number(fields[2]) : undefined;
}
