import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { readFile, rename, writeFile } from "node:fs/promises";
import { cpus, release } from "node:os";
import { join } from "node:path";
import { z } from "zod";
import { codeOf, FlurryError } from "../../errors/errors.ts";
import { kvmDevice, mayUseKvm, type VmUser } from "./confine.ts";
import type { Host } from "./host.ts";
import { type Accelerator, type BootSource, commandLine, type MachineProfile } from "./profile.ts";
import { QemuProcess, throwIfAborted } from "./qemu-process.ts";

/** Milliseconds in which a kernel must boot to its agent under KVM. Where KVM works it takes under two seconds. */
const KVM_BOOT_DEADLINE_MS = 15_000;

const verdictSchema = z.strictObject({
  accel: z.enum(["kvm", "tcg"]),
  /** Why, for people. */
  reason: z.string(),
  /** Kernel, QEMU and host that the verdict is for. */
  key: z.string(),
});

/** Which accelerator VMs use here, and why. */
export type AcceleratorVerdict = z.infer<typeof verdictSchema>;

export interface ProbeOptions {
  host: Host;
  boot: BootSource;
  /** Release and version of the kernel that boots. */
  kernel: string;
  disk: string;
  /** Tells that a probe boot begins; a remembered verdict costs none. */
  onProbe?: (() => void) | undefined;
  /** @default 15000 */
  deadlineMs?: number | undefined;
  signal?: AbortSignal | undefined;
}

/**
 * Chooses the accelerator: KVM if this very kernel really boots under it, else TCG. A `/dev/kvm` that
 * opens is no proof. The verdict is remembered for this kernel, QEMU and host;
 * `$FLURRY_ACCEL` (kvm or tcg) overrules it.
 *
 * @throws FlurryError BAD_ARGUMENT for another value of `$FLURRY_ACCEL`, ABORTED
 */
export async function chooseAccelerator(options: ProbeOptions): Promise<AcceleratorVerdict> {
  const forced = process.env.FLURRY_ACCEL;
  if (forced !== undefined && forced !== "") return { ...overruled(forced), key: "" };
  const key = verdictKey(options);
  const known = await readVerdict(options.host.home);
  if (known?.key === key) return known;
  const verdict = { ...(await probe(options)), key };
  const path = verdictPath(options.host.home);
  await writeFile(`${path}.${process.pid}`, `${JSON.stringify(verdict)}\n`);
  await rename(`${path}.${process.pid}`, path);
  return verdict;
}

/** The accelerator as far as it is known without a probe: undefined until a kernel has been tried. */
export async function knownAccelerator(host: Host): Promise<Accelerator | undefined> {
  const forced = process.env.FLURRY_ACCEL;
  if (forced !== undefined && forced !== "") return overruled(forced).accel;
  if (kvmObstacle(host.user)) return "tcg";
  return (await readVerdict(host.home))?.accel;
}

/** The verdict of the last probe in this data directory, for a doctor to show. */
export async function readVerdict(home: string): Promise<AcceleratorVerdict | undefined> {
  const path = verdictPath(home);
  if (!existsSync(path)) return undefined;
  try {
    return verdictSchema.parse(JSON.parse(await readFile(path, "utf8")));
  } catch (error) {
    // A damaged cache is no verdict: the probe is run again and writes a new one.
    if (error instanceof SyntaxError || error instanceof z.ZodError) return undefined;
    throw error;
  }
}

async function probe(options: ProbeOptions): Promise<{ accel: Accelerator; reason: string }> {
  const { host, boot, disk, deadlineMs = KVM_BOOT_DEADLINE_MS, signal } = options;
  const obstacle = kvmObstacle(host.user);
  if (obstacle) return { accel: "tcg", reason: obstacle };
  options.onProbe?.();
  try {
    const bootMs = await bootUnderKvm({ host, boot, disk, deadlineMs, signal });
    return { accel: "kvm", reason: `a guest booted under KVM in ${Math.round(bootMs)} ms` };
  } catch (error) {
    throwIfAborted(signal);
    const first = (error instanceof Error ? error.message : String(error)).split("\n")[0];
    return { accel: "tcg", reason: `${kvmDevice()} opens, but no guest boots under it: ${first}` };
  }
}

/** Boots until the guest's agent opens its port. Returns milliseconds. */
async function bootUnderKvm(options: Omit<ProbeOptions, "kernel"> & { deadlineMs: number }): Promise<number> {
  const { host, boot, disk, deadlineMs, signal } = options;
  const began = performance.now();
  const profile: MachineProfile = { accel: "kvm", memMiB: 256, cpus: 1, disk };
  const dir = host.owner.vmDir();
  const args = commandLine({ qemu: host.qemu, profile, ram: { kind: "anonymous" }, dir, boot });
  await using qemu = await QemuProcess.start({ host, dir, args, signal });
  // The agent opens its port once the guest is up: QEMU says so without any word of the agent's.
  const opened = qemu.qmp.expect("VSERPORT_CHANGE", {
    filter: ({ data }) => data.open,
    timeoutMs: deadlineMs,
    signal,
  });
  const died = qemu.exited.then((info) => Promise.reject(qemu.exitError(info)));
  try {
    await Promise.race([opened, died]);
  } catch (error) {
    if (codeOf(error) === "QMP_TIMEOUT") {
      throw new FlurryError("BOOT_TIMEOUT", `it was not up after ${deadlineMs} ms`, { cause: error });
    }
    throw error;
  } finally {
    opened[Symbol.dispose]();
    died.catch(() => undefined);
  }
  return performance.now() - began;
}

function kvmObstacle(user: VmUser | undefined): string | undefined {
  const device = kvmDevice();
  if (!existsSync(device)) return `there is no ${device}`;
  if (!mayUseKvm(user)) return `${device} does not open for ${user?.name ?? "this user"}`;
  return undefined;
}

function overruled(value: string): { accel: Accelerator; reason: string } {
  if (value !== "kvm" && value !== "tcg") {
    throw new FlurryError("BAD_ARGUMENT", `FLURRY_ACCEL is "${value}", and must be "kvm" or "tcg"`);
  }
  return { accel: value, reason: "FLURRY_ACCEL says so" };
}

function verdictKey({ host, kernel }: ProbeOptions): string {
  // The obstacle too: rights that were granted since must not be hidden by an old verdict.
  const obstacle = kvmObstacle(host.user) ?? "";
  const parts = [kernel, host.qemu.version, release(), cpus()[0]?.model ?? "", kvmDevice(), obstacle];
  return createHash("sha256").update(parts.join("\0")).digest("hex");
}

function verdictPath(home: string): string {
  return join(home, "accelerator.json");
}
