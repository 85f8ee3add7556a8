import { execFile } from "node:child_process";
import { accessSync, constants } from "node:fs";
import { delimiter, join } from "node:path";
import { promisify } from "node:util";
import { FlurryError } from "../../errors/errors.ts";

/** The QEMU that this installation uses, and what of it decides how VMs are started. */
export interface QemuBinary {
  path: string;
  /** First line of `--version`, with Debian's package version: part of the fingerprint. */
  version: string;
  major: number;
  minor: number;
  /** Versioned machine type, so that a descriptor never meets another machine under the same name. */
  machine: string;
  /**
   * True where guest RAM can be mapped from a file that is opened read-only (`rom=off`, QEMU 8.2).
   * Before, a private mapping still needs the file to be openable for writing.
   */
  readOnlyRam: boolean;
  /** True where pages that a guest waits for have a connection of their own, and it is sound (QEMU 8.0). */
  preempt: boolean;
}

const DEFAULT_NAME = "qemu-system-x86_64";

/**
 * Finds QEMU: `$FLURRY_QEMU` (a path or a name), else `qemu-system-x86_64` in PATH.
 *
 * @throws FlurryError QEMU_NOT_FOUND when it is missing or does not run, ABORTED
 */
export async function findQemu(signal?: AbortSignal): Promise<QemuBinary> {
  const path = locate(process.env.FLURRY_QEMU || DEFAULT_NAME);
  let output: string;
  try {
    const options = signal ? { timeout: 20_000, signal } : { timeout: 20_000 };
    ({ stdout: output } = await promisify(execFile)(path, ["--version"], options));
  } catch (cause) {
    if (signal?.aborted) throw new FlurryError("ABORTED", "Aborted by the caller", { cause: signal.reason });
    throw new FlurryError("QEMU_NOT_FOUND", `Cannot run "${path} --version": ${messageOf(cause)}`, { cause });
  }
  return parseQemuVersion(path, output);
}

/** Reads the output of `qemu-system-x86_64 --version`. */
export function parseQemuVersion(path: string, output: string): QemuBinary {
  const match = /version (\d+)\.(\d+)\.\d+/.exec(output);
  if (!match) {
    throw new FlurryError(
      "QEMU_NOT_FOUND",
      `"${path}" is no QEMU: its version reads "${output.slice(0, 80)}"`,
    );
  }
  const major = Number(match[1]);
  const minor = Number(match[2]);
  return {
    path,
    version: (output.split("\n")[0] ?? "").trim(),
    major,
    minor,
    machine: `pc-q35-${major}.${minor}`,
    readOnlyRam: major > 8 || (major === 8 && minor >= 2),
    preempt: major >= 8,
  };
}

function locate(name: string): string {
  const candidates = name.includes("/")
    ? [name]
    : (process.env.PATH ?? "").split(delimiter).map((dir) => join(dir, name));
  for (const candidate of candidates) {
    try {
      accessSync(candidate, constants.X_OK);
      return candidate;
    } catch (error) {
      if (!isMissing(error)) throw error;
    }
  }
  throw new FlurryError("QEMU_NOT_FOUND", `Cannot find QEMU: no executable "${name}"`, {
    hint: "apt-get install qemu-system-x86 (or set FLURRY_QEMU to its path)",
  });
}

function isMissing(error: unknown): boolean {
  const code = error instanceof Error && "code" in error ? error.code : undefined;
  return code === "ENOENT" || code === "EACCES" || code === "ENOTDIR";
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
