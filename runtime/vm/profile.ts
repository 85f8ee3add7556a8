import { createHash } from "node:crypto";
import { kvmDevice, SANDBOX_ARGS } from "./confine.ts";
import type { QemuBinary } from "./qemu-binary.ts";

export type Accelerator = "kvm" | "tcg";

/** All that makes a VM what it is for its guest. Parent and child have the same. */
export interface MachineProfile {
  accel: Accelerator;
  memMiB: number;
  cpus: number;
  /** Path of the read-only root disk. */
  disk: string;
  /** Whether it has a second port, for the worker-host. @default false */
  workerPort?: boolean | undefined;
  /**
   * Whether it has a vmgenid device, which has another value in each process: a guest's kernel that finds it
   * changed knows that it was forked. Its agent tells it as well, and sooner. Where the CPU is emulated, the
   * kernel's ACPI interpreter takes 16 ms and more for it, and 2.4 MB of each child.
   *
   * @default under KVM
   */
  generationId?: boolean | undefined;
}

/** Where a VM's RAM comes from. */
export type RamSource =
  /** A file that the VM writes: a parent's, in a tmpfs. */
  | { kind: "shared"; path: string }
  /** A frozen memory image, mapped privately: the VM's writes stay its own. */
  | { kind: "private"; path: string }
  /** Memory of the process's own: of a VM that is never forked, or that a memserver gives its pages. */
  | { kind: "anonymous" };

export interface BootSource {
  kernel: string;
  initrd: string;
}

export interface CommandLineOptions {
  qemu: QemuBinary;
  profile: MachineProfile;
  ram: RamSource;
  /** Directory with the sockets `q` (QMP), `a` (agent) and perhaps `w` (worker-host), listened on by the host. */
  dir: string;
  /** Boots this kernel; a child has none. */
  boot?: BootSource | undefined;
  /**
   * Waits for a migration stream: `listening` on the unix socket `m` in `dir`, or `deferred` until QMP says
   * where.
   */
  incoming?: "listening" | "deferred" | undefined;
  /** Starts with stopped CPUs. */
  paused?: boolean | undefined;
}

/** Name of the main RAM block in every device stream. */
export const RAM_BLOCK = "ram0";

// Chipset parts that no guest of ours uses cost start time and device state. virtio devices are
// legacy (disable-modern): a modern one saves 46 KB of empty queue records each, which doubled the
// load time of a child and quadrupled the descriptor.
const MACHINE_OPTIONS = "sata=off,smbus=off,vmport=off,hpet=off,usb=off,graphics=off,smm=off,i8042=off";
const DEVICE_OPTIONS = "disable-modern=on";

/** QEMU's arguments for a machine, without the binary. */
export function commandLine(options: CommandLineOptions): string[] {
  const { qemu, profile, dir } = options;
  return [
    ...["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"],
    ...SANDBOX_ARGS,
    ...machineArgs(qemu, profile),
    ...["-object", ramObject(qemu, profile, options.ram)],
    ...["-qmp", `unix:${escaped(dir)}/q`],
    ...["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"],
    ...[
      "-device",
      `virtio-serial-pci,id=serial,addr=0x2,max_ports=${profile.workerPort ? 3 : 2},${DEVICE_OPTIONS}`,
    ],
    ...["-chardev", `socket,id=agent,path=${escaped(dir)}/a`],
    ...["-device", "virtserialport,id=agentport,bus=serial.0,nr=1,chardev=agent,name=flurry.agent"],
    ...(profile.workerPort ? workerPortArgs(dir) : []),
    ...["-blockdev", diskNode(profile.disk)],
    ...["-device", `virtio-blk-pci,drive=root,addr=0x3,num-queues=1,${DEVICE_OPTIONS}`],
    ...(hasGenerationId(profile) ? ["-device", "vmgenid,id=generation,guid=auto"] : []),
    ...bootArgs(options.boot, profile),
    ...incomingArgs(options),
    ...(options.paused ? ["-S"] : []),
  ];
}

/** CPU model: pinned, since QEMU does not notice a different one on restore. */
export function cpuModel(accel: Accelerator, qemu: QemuBinary): string {
  if (accel === "kvm") return "host,migratable=on";
  // A fixed model means the same on every QEMU, which `max` does not. This one has AVX2, and no
  // "fast" string instructions: Linux clears and copies memory with them where they are offered, and
  // TCG executes them byte by byte (a copy in the guest takes three times as long with `max`). The
  // rest are features of the model that TCG lacks and would warn about.
  const model = "Haswell-noTSX,erms=off,pcid=off,tsc-deadline=off,invpcid=off";
  return qemu.major < 8 ? `${model},cx16=off` : model;
}

/** Hash over everything of the command line that the guest can tell; part of the fingerprint. */
export function deviceHash(qemu: QemuBinary, profile: MachineProfile): string {
  const args = commandLine({ qemu, profile: { ...profile, disk: "" }, ram: { kind: "anonymous" }, dir: "" });
  return createHash("sha256").update(JSON.stringify(args)).digest("hex");
}

function hasGenerationId({ generationId, accel }: MachineProfile): boolean {
  return generationId ?? accel === "kvm";
}

function workerPortArgs(dir: string): string[] {
  return [
    ...["-chardev", `socket,id=worker,path=${escaped(dir)}/w`],
    ...["-device", "virtserialport,id=workerport,bus=serial.0,nr=2,chardev=worker,name=flurry.worker"],
  ];
}

function machineArgs(qemu: QemuBinary, profile: MachineProfile): string[] {
  return [
    ...["-accel", accelerator(profile.accel)],
    ...["-machine", `${qemu.machine},memory-backend=${RAM_BLOCK},${MACHINE_OPTIONS}`],
    ...["-cpu", cpuModel(profile.accel, qemu), "-smp", String(profile.cpus), "-m", String(profile.memMiB)],
  ];
}

function incomingArgs({ incoming, dir }: CommandLineOptions): string[] {
  if (!incoming) return [];
  return ["-incoming", incoming === "deferred" ? "defer" : `unix:${escaped(dir)}/m`];
}

function accelerator(accel: Accelerator): string {
  const device = kvmDevice();
  // QEMU 8.1 and later can be told another node; the default one is named to none.
  return accel === "kvm" && device !== "/dev/kvm" ? `kvm,device=${escaped(device)}` : accel;
}

function ramObject(qemu: QemuBinary, profile: MachineProfile, ram: RamSource): string {
  const common = `id=${RAM_BLOCK},size=${profile.memMiB}M`;
  if (ram.kind === "anonymous") return `memory-backend-ram,${common}`;
  const file = `memory-backend-file,${common},mem-path=${escaped(ram.path)}`;
  if (ram.kind === "shared") return `${file},share=on`;
  return `${file},share=off,reserve=off${qemu.readOnlyRam ? ",readonly=on,rom=off" : ""}`;
}

/** QEMU's option syntax ends a value at a comma, unless it is doubled. */
function escaped(path: string): string {
  return path.replaceAll(",", ",,");
}

function diskNode(path: string): string {
  return JSON.stringify({
    driver: "raw",
    "node-name": "root",
    "read-only": true,
    // drop-cache: without it every child's start drops the host's page cache of the disk.
    file: { driver: "file", filename: path, "read-only": true, locking: "off", "drop-cache": false },
  });
}

function bootArgs(boot: BootSource | undefined, profile: MachineProfile): string[] {
  if (!boot) return [];
  // A panicking guest resets at once and -no-reboot makes that QEMU's end, which is noticed.
  // CPU bug mitigations only cost time where the CPU is emulated.
  const append = ["console=ttyS0", "quiet", "panic=-1", "random.trust_cpu=on"];
  if (profile.accel === "tcg") append.push("mitigations=off", "tsc=reliable", "no_timer_check");
  return ["-kernel", boot.kernel, "-initrd", boot.initrd, "-append", append.join(" ")];
}
