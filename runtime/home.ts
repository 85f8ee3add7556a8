import { chmodSync, mkdirSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";

/** True where this process may hand its files to another user (and so confine QEMU under its own). */
export function isRoot(): boolean {
  return process.getuid?.() === 0;
}

/**
 * The data directory: images, frozen parents, verdicts. `$FLURRY_HOME`, else `/var/lib/flurry` for
 * root (the unprivileged QEMU user must be able to reach it), else `$XDG_CACHE_HOME/flurry`.
 * Created, searchable by others, when missing.
 */
export function flurryHome(): string {
  const fallback = isRoot()
    ? "/var/lib/flurry"
    : join(process.env.XDG_CACHE_HOME || join(homedir(), ".cache"), "flurry");
  return ensured(process.env.FLURRY_HOME || fallback);
}

/**
 * Where the sockets of running VMs live. `$FLURRY_RUN`, else `/run/flurry` for root, else
 * `$XDG_RUNTIME_DIR/flurry`, else `/tmp/flurry-UID`. Kept short: a unix socket's path has 107 bytes.
 */
export function flurryRun(): string {
  const fallback = isRoot()
    ? "/run/flurry"
    : process.env.XDG_RUNTIME_DIR
      ? join(process.env.XDG_RUNTIME_DIR, "flurry")
      : `/tmp/flurry-${process.getuid?.() ?? 0}`;
  return ensured(process.env.FLURRY_RUN || fallback);
}

/** Where the RAM of booting parents lives: a tmpfs. `$FLURRY_SHM`, else `/dev/shm/flurry-UID`. */
export function flurryShm(): string {
  return ensured(process.env.FLURRY_SHM || `/dev/shm/flurry-${process.getuid?.() ?? 0}`);
}

/**
 * Directory with the keys by which memservers of one installation know each other: `$FLURRY_KEYS`, else
 * `memserver-keys` in the data directory. Made when they are first needed.
 *
 * @param home - data directory
 */
export function memserverKeys(home: string): string {
  return process.env.FLURRY_KEYS || join(home, "memserver-keys");
}

function ensured(dir: string): string {
  makeReachable(dir);
  return dir;
}

/**
 * Makes a directory that the user of the VMs can pass through, whatever the umask. One that is there
 * already stays as it is: its modes are its owner's.
 */
export function makeReachable(dir: string): void {
  if (mkdirSync(dir, { recursive: true }) !== undefined) chmodSync(dir, 0o755);
}
