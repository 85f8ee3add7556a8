import { describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { newestOffer } from "../../runtime/cli/doctor-checks.ts";
import { findProbe, parseRequirements, readRequirements } from "../../runtime/requirements.ts";

describe("requirements", () => {
  test("readRequirements() reads every line of the table", () => {
    const requirements = readRequirements();
    expect(requirements.find((entry) => entry.probe === "qemu-system-x86_64")).toEqual({
      who: "run",
      probe: "qemu-system-x86_64",
      package: "qemu-system-x86",
      purpose: "runs the virtual machines",
    });
    expect(new Set(requirements.map((entry) => entry.who))).toEqual(new Set(["run", "user", "test"]));
  });

  test("parseRequirements() names the line that it cannot read", () => {
    expect(() => parseRequirements("# remark\nrun gcc gcc compiles\nalways cpio cpio packs\n")).toThrow(
      'Cannot read line 3 of requirements.txt: "always cpio cpio packs"',
    );
    expect(() => parseRequirements("run gcc gcc")).toThrow("line 1");
  });

  test("findProbe() finds commands in PATH and files by pattern", () => {
    const directory = mkdtempSync(join(tmpdir(), "flurry-probe-"));
    try {
      writeFileSync(join(directory, "tool"), "", { mode: 0o755 });
      writeFileSync(join(directory, "data.a"), "", { mode: 0o644 });
      expect(findProbe("tool", `/nonexistent:${directory}`)).toBe(join(directory, "tool"));
      expect(findProbe("data.a", directory)).toBeUndefined();
      expect(findProbe(join(directory, "*.a"))).toBe(join(directory, "data.a"));
      expect(findProbe(join(directory, "*.b"))).toBeUndefined();
    } finally {
      rmSync(directory, { recursive: true });
    }
  });
});

describe("newestOffer()", () => {
  test("takes the newest version and says which suite has it", () => {
    const madison = [
      "qemu-system-x86 | 1:10.0.2+ds-2+deb13u1~bpo12+1 | http://mirror.example/debian bookworm-backports/main amd64 Packages",
      "qemu-system-x86 | 1:7.2+dfsg-7+deb12u16 | http://mirror.example/debian bookworm/main amd64 Packages",
    ].join("\n");
    expect(newestOffer(madison)).toEqual({
      version: "1:10.0.2+ds-2+deb13u1~bpo12+1",
      suite: "bookworm-backports",
      rank: 10_000,
    });
  });

  test("finds nothing in an empty answer", () => {
    expect(newestOffer("")).toBeUndefined();
  });
});
