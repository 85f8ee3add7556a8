import { describe, expect, test } from "bun:test";
import { confined } from "../../runtime/vm/confine.ts";
import { commandLine, deviceHash, type MachineProfile } from "../../runtime/vm/profile.ts";
import { parseQemuVersion } from "../../runtime/vm/qemu-binary.ts";
import { rejection } from "../support/agent-peer.ts";

const NEW = parseQemuVersion("/usr/bin/qemu", "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nmore");
const OLD = parseQemuVersion("/usr/bin/qemu", "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nmore");
const profile: MachineProfile = { accel: "tcg", memMiB: 512, cpus: 1, disk: "/disk,1" };
const boot = { kernel: "/kernel", initrd: "/initrd" };
const parent = { qemu: NEW, profile, ram: { kind: "shared", path: "/ram,2" }, dir: "/run,3", boot } as const;
const child = {
  qemu: NEW,
  profile,
  ram: { kind: "private", path: "/image,4" },
  dir: "/run,3",
  incoming: "listening",
} as const;

/** The values of an option that may come more than once. */
function valuesOf(args: readonly string[], option: string): string[] {
  return args.flatMap((arg, at) => (arg === option ? [args[at + 1]!] : []));
}

describe("commandLine()", () => {
  test.each([parent, child])("starts no device that it does not name, and no network", (options) => {
    const args = commandLine(options);
    expect(args).toContain("-nodefaults");
    expect(args).toContain("-no-user-config");
    expect(args).toContain("-no-reboot");
    const devices = valuesOf(args, "-device").map((value) => value.split(",")[0]);
    expect(devices).toEqual(["virtio-serial-pci", "virtserialport", "virtio-blk-pci"]);
    expect(args.filter((arg) => /^-(?:nic|net|netdev|usb|vga|monitor|virtfs|fsdev)/.test(arg))).toEqual([]);
    expect(valuesOf(args, "-device").join()).not.toMatch(/net|balloon|vga|usb/);
  });

  test.each([parent, child])("turns QEMU's sandbox on with every denial", (options) => {
    expect(valuesOf(commandLine(options), "-sandbox")).toEqual([
      "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
    ]);
  });

  test("gives a machine a port for the worker-host only when it is to have one", () => {
    const ports = (workerPort: boolean) =>
      valuesOf(commandLine({ ...child, profile: { ...profile, workerPort } }), "-device").filter((device) =>
        device.startsWith("virtserialport"),
      );
    expect(ports(false)).toHaveLength(1);
    const [, worker] = ports(true);
    expect(worker).toBe("virtserialport,id=workerport,bus=serial.0,nr=2,chardev=worker,name=flurry.worker");
    const args = commandLine({ ...child, profile: { ...profile, workerPort: true } });
    expect(valuesOf(args, "-chardev")).toContain("socket,id=worker,path=/run,,3/w");
  });

  test("gives a machine a generation id of its own by the accelerator, unless it is said", () => {
    const has = (changes: Partial<MachineProfile>) =>
      valuesOf(commandLine({ ...child, profile: { ...profile, ...changes } }), "-device").includes(
        "vmgenid,id=generation,guid=auto",
      );
    expect(has({})).toBe(false);
    expect(has({ generationId: true })).toBe(true);
    expect(has({ accel: "kvm" })).toBe(true);
    expect(has({ accel: "kvm", generationId: false })).toBe(false);
  });

  test("doubles the commas of paths, which end a value else", () => {
    const args = [...commandLine(parent), ...commandLine(child)];
    const objects = valuesOf(args, "-object");
    expect(objects[0]).toContain("mem-path=/ram,,2,share=on");
    expect(objects[1]).toContain("mem-path=/image,,4,share=off");
    expect(valuesOf(args, "-qmp")).toEqual(["unix:/run,,3/q", "unix:/run,,3/q"]);
    expect(valuesOf(args, "-incoming")).toEqual(["unix:/run,,3/m"]);
    expect(valuesOf(args, "-chardev")).toContain("socket,id=agent,path=/run,,3/a");
    // A node of the block layer is JSON: nothing to escape.
    const disk = JSON.parse(valuesOf(args, "-blockdev")[0]!);
    expect(disk).toMatchObject({ "read-only": true, file: { filename: "/disk,1", "read-only": true } });
  });

  test("gives a child the machine of its parent, and no kernel", () => {
    const ofParent = commandLine(parent);
    const ofChild = commandLine(child);
    for (const option of ["-machine", "-cpu", "-smp", "-m", "-device", "-accel", "-blockdev"]) {
      expect(valuesOf(ofChild, option)).toEqual(valuesOf(ofParent, option));
    }
    expect(valuesOf(ofParent, "-kernel")).toEqual(["/kernel"]);
    expect(valuesOf(ofParent, "-incoming")).toEqual([]);
    for (const option of ["-kernel", "-initrd", "-append"]) expect(ofChild).not.toContain(option);
  });

  test("lets a child read its memory image only, where QEMU can", () => {
    const [recent] = valuesOf(commandLine(child), "-object");
    expect(recent).toContain("share=off,reserve=off,readonly=on,rom=off");
    const [old] = valuesOf(commandLine({ ...child, qemu: OLD }), "-object");
    expect(old).toContain("share=off,reserve=off");
    expect(old).not.toMatch(/readonly|rom=/);
  });

  test("ends a VM whose guest panics or resets", () => {
    expect(valuesOf(commandLine(parent), "-append")[0]).toContain("panic=-1");
  });
});

describe("deviceHash()", () => {
  test("follows what the guest can tell of the machine, and not where files lie", () => {
    const hash = deviceHash(NEW, profile);
    expect(deviceHash(NEW, { ...profile, disk: "/elsewhere" })).toBe(hash);
    expect(deviceHash(NEW, { ...profile, memMiB: 513 })).not.toBe(hash);
    expect(deviceHash(NEW, { ...profile, cpus: 2 })).not.toBe(hash);
    expect(deviceHash(NEW, { ...profile, accel: "kvm" })).not.toBe(hash);
    expect(deviceHash(OLD, profile)).not.toBe(hash);
    expect(deviceHash(NEW, { ...profile, workerPort: false })).toBe(hash);
    expect(deviceHash(NEW, { ...profile, workerPort: true })).not.toBe(hash);
    expect(deviceHash(NEW, { ...profile, generationId: true })).not.toBe(hash);
  });
});

describe("confined()", () => {
  test("forbids new privileges, and ends the program with its parent", () => {
    const argv = confined(["/usr/bin/qemu", "-S"], undefined);
    expect(argv[0]).toBe("setpriv");
    expect(argv).toContain("--no-new-privs");
    expect(argv.join(" ")).toContain("--pdeathsig KILL");
    expect(argv.join(" ")).not.toContain("uid");
    expect(argv.slice(argv.indexOf("--"))).toEqual(["--", "/usr/bin/qemu", "-S"]);
  });

  test("takes user, groups and capabilities away as root", () => {
    const user = { name: "vm", uid: 901, gid: 902, kvmGid: undefined };
    const text = confined(["/usr/bin/qemu"], user).join(" ");
    expect(text).toContain("--reuid 901 --regid 902 --clear-groups --inh-caps=-all --bounding-set=-all -- /");
    expect(confined(["q"], { ...user, kvmGid: 903 }).join(" ")).toContain("--groups 903");
    expect(confined(["q"], { ...user, kvmGid: 903 })).not.toContain("--clear-groups");
  });
});

describe("parseQemuVersion()", () => {
  test("takes version, machine type and abilities from the first line", () => {
    expect(NEW).toEqual({
      path: "/usr/bin/qemu",
      version: "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)",
      major: 10,
      minor: 0,
      machine: "pc-q35-10.0",
      readOnlyRam: true,
      preempt: true,
    });
    expect(OLD).toMatchObject({ major: 7, minor: 2, machine: "pc-q35-7.2", readOnlyRam: false });
  });

  test.each([
    ["8.1.5", false],
    ["8.2.0", true],
    ["9.0.0", true],
  ])("knows of %s whether it maps RAM from a file that is read-only", (version, readOnlyRam) => {
    expect(parseQemuVersion("q", `QEMU emulator version ${version}\n`)).toMatchObject({ readOnlyRam });
  });

  test.each(["", "bash: not found", "GNU bash, version 5.2"])(
    "refuses what is no QEMU: %p",
    async (output) => {
      const error = await rejection((async () => parseQemuVersion("/bin/it", output))());
      expect(error.code).toBe("QEMU_NOT_FOUND");
      expect(error.message).toContain("/bin/it");
    },
  );
});
