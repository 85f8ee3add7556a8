import { describe, expect, test } from "bun:test";
import { Buffer } from "node:buffer";
import { packCpio } from "../../guest-agent/image/cpio.ts";
import { packAgent, packModules } from "../../guest-agent/image/kernel.ts";
import { moduleDependencies, orderModules } from "../../guest-agent/image/modules.ts";
import { extractVmlinux } from "../../guest-agent/image/vmlinux.ts";

interface Unpacked {
  path: string;
  mode: number;
  data: string;
}

/** Reads newc archives that follow one another, as the kernel does (buffer-format.rst). */
function unpackCpio(archive: Buffer): Unpacked[] {
  const entries: Unpacked[] = [];
  for (let at = 0; at < archive.length; ) {
    expect(archive.toString("latin1", at, at + 6)).toBe("070701");
    const field = (index: number) =>
      Number.parseInt(archive.toString("latin1", at + 6 + index * 8, at + 14 + index * 8), 16);
    const nameSize = field(11);
    const dataSize = field(6);
    const path = archive.toString("utf8", at + 110, at + 110 + nameSize - 1);
    const dataAt = align4(at + 110 + nameSize);
    if (path !== "TRAILER!!!") {
      entries.push({ path, mode: field(1), data: archive.toString("latin1", dataAt, dataAt + dataSize) });
    }
    expect([field(2), field(3), field(5)]).toEqual([0, 0, 0]);
    at = align4(dataAt + dataSize);
  }
  return entries;
}

function align4(size: number): number {
  return (size + 3) & ~3;
}

function moduleThatNeeds(...names: string[]): Buffer {
  return Buffer.from(`\x7fELF...\0license=GPL\0depends=${names.join(",")}\0name=x\0`, "latin1");
}

describe("packCpio()", () => {
  test("writes what a newc reader reads back, whatever the lengths", () => {
    const entries = [0, 1, 2, 3, 4, 5].map((length) => ({
      path: `f${"x".repeat(length)}`,
      mode: 0o100644,
      data: Buffer.from("d".repeat(length)),
    }));
    expect(unpackCpio(packCpio(entries))).toEqual(
      entries.map(({ path, mode, data }) => ({ path, mode, data: data.toString() })),
    );
  });
});

describe("packModules() and packAgent()", () => {
  test("make one initramfs with the agent as /init and the modules in load order", () => {
    const modules = [
      { name: "b", data: Buffer.from("module b") },
      { name: "a", data: Buffer.from("module a") },
    ];
    const entries = unpackCpio(Buffer.concat([packModules(modules), packAgent(Buffer.from("agent"))]));
    const byPath = new Map(entries.map((entry) => [entry.path, entry]));
    expect(byPath.get("init")).toEqual({ path: "init", mode: 0o100755, data: "agent" });
    expect(byPath.get("flurry/modules")?.data).toBe("/flurry/b.ko\n/flurry/a.ko\n");
    expect(byPath.get("flurry/a.ko")?.data).toBe("module a");
    expect(byPath.get("dev/console")?.mode).toBe(0o020600);
  });
});

describe("orderModules()", () => {
  const files: Record<string, Buffer> = {
    top: moduleThatNeeds("middle", "built-in"),
    middle: moduleThatNeeds("bottom"),
    bottom: moduleThatNeeds(),
    broken: moduleThatNeeds("absent"),
  };
  const source = {
    required: ["top", "bottom"],
    optional: ["nowhere"],
    isBuiltIn: (name: string) => name === "built_in",
    load: async (name: string) => files[name],
  };

  test("puts each module after those it needs, once, without what is built in", async () => {
    const ordered = await orderModules(source);
    expect(ordered.map(({ name }) => name)).toEqual(["bottom", "middle", "top"]);
  });

  test("rejects a kernel that lacks a required module", async () => {
    const error = await orderModules({ ...source, required: ["nowhere"] }).catch((caught: unknown) => caught);
    expect(error).toMatchObject({
      code: "IMAGE_BUILD_FAILED",
      message: 'The kernel has no module "nowhere"',
    });
  });

  test("rejects a module that needs one that is not there", async () => {
    const error = await orderModules({ ...source, optional: ["broken"] }).catch((caught: unknown) => caught);
    expect(error).toMatchObject({ message: 'The kernel has no module "absent", which broken needs' });
  });

  test("reads names with dashes and modules that depend on nothing", () => {
    expect(moduleDependencies(moduleThatNeeds("rng-core", "b"))).toEqual(["rng_core", "b"]);
    expect(moduleDependencies(Buffer.from("no modinfo at all"))).toEqual([]);
  });
});

describe("extractVmlinux()", () => {
  const refuse = () => Promise.reject(new Error("Nothing to decompress"));

  test("leaves alone what is no bzImage", async () => {
    expect(await extractVmlinux(Buffer.from("short"), refuse)).toBeUndefined();
    expect(await extractVmlinux(Buffer.alloc(4096), refuse)).toBeUndefined();
  });

  test("leaves alone a payload that reaches past the end or is of an unknown kind", async () => {
    const image = Buffer.alloc(4096);
    image.write("HdrS", 0x202, "latin1");
    image.writeUInt16LE(0x020f, 0x206);
    image.writeUInt32LE(100_000, 0x24c);
    expect(await extractVmlinux(image, refuse)).toBeUndefined();
    image.writeUInt32LE(100, 0x24c);
    expect(await extractVmlinux(image, refuse)).toBeUndefined();
  });

  test("does not take a kernel without the PVH note", async () => {
    const image = Buffer.alloc(4096);
    image.write("HdrS", 0x202, "latin1");
    image.writeUInt16LE(0x020f, 0x206);
    image.writeUInt32LE(100, 0x24c);
    Buffer.from([0x28, 0xb5, 0x2f, 0xfd]).copy(image, 5 * 512);
    expect(await extractVmlinux(image, async () => Buffer.from("not an ELF file"))).toBeUndefined();
  });
});
