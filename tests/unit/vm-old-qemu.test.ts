import { expect, test } from "bun:test";
import { commandLine, cpuModel, type MachineProfile } from "../../runtime/vm/profile.ts";
import { parseQemuVersion } from "../../runtime/vm/qemu-binary.ts";

const old = parseQemuVersion("qemu", "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)");
const current = parseQemuVersion("qemu", "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)");

test("cpuModel() leaves out what QEMU before 8.0 emulates wrongly, and only where it emulates", () => {
  expect(cpuModel("tcg", old)).toBe(`${cpuModel("tcg", current)},cx16=off`);
  expect(cpuModel("kvm", old)).toBe(cpuModel("kvm", current));
  expect(cpuModel("tcg", { ...old, major: 8, minor: 0 })).toBe(cpuModel("tcg", current));
});

test("commandLine() names no option that QEMU 7.2 does not know", () => {
  const profile: MachineProfile = { accel: "tcg", memMiB: 64, cpus: 1, disk: "/disk" };
  const ram = { kind: "private", path: "/image" } as const;
  const lines = [old, current].map((qemu) => commandLine({ qemu, profile, ram, dir: "/run/0" }).join(" "));
  expect(lines[0]).toContain("pc-q35-7.2,");
  expect(lines[0]).toContain("mem-path=/image,share=off");
  expect(lines[0]).not.toMatch(/rom=off|readonly=on/);
  expect(lines[1]).toContain("readonly=on,rom=off");
});
