import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import {
  chmodSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { ParentStore, parentKey } from "../../runtime/fork/parent-store.ts";
import { Host } from "../../runtime/vm/host.ts";
import { ownerName } from "../../runtime/vm/owner.ts";
import { rejection } from "../support/agent-peer.ts";
import { madeUpFrozenVm } from "../support/frozen.ts";
import {
  canMount,
  Script,
  smallTmpfs,
  TEST_MS,
  type TemporaryDirectory,
  temporaryDirectory,
} from "../support/vm.ts";

let directory: TemporaryDirectory;
let home: string;
let host: Host;

beforeEach(async () => {
  directory = temporaryDirectory();
  home = join(directory.path, "home");
  mkdirSync(home);
  host = await Host.open({ home });
});

afterEach(async () => {
  await host[Symbol.asyncDispose]();
  directory[Symbol.dispose]();
});

function memory(seed: number): Buffer {
  return Buffer.alloc(200_000, seed);
}

/** Puts a parent, which is then the one that was used last. */
async function put(store: ParentStore, name: string, seed: number) {
  const stored = await store.put(name, madeUpFrozenVm(directory.path, name, memory(seed)));
  // Times of directories have the grain of the kernel's clock: set apart, they have an order.
  const time = new Date(Date.now() - 1_000_000 + seed * 1000);
  utimesSync(join(home, "parents", stored.hash), time, time);
  return stored;
}

/** What is on disk, without the names that say nothing. */
function stored(): string[] {
  return readdirSync(join(home, "parents"))
    .filter((name) => name !== "by-key")
    .sort();
}

describe("ParentStore", () => {
  test("finds what was put, with the memory moved to disk", async () => {
    const store = new ParentStore(host);
    const frozen = madeUpFrozenVm(directory.path, "one", memory(1));
    const parent = await store.put("one", frozen);
    expect(existsSync(frozen.imagePath)).toBe(false);
    expect(readFileSync(parent.imagePath).equals(memory(1))).toBe(true);
    expect(stored()).toEqual([parent.hash]);
    const found = await new ParentStore(host).find("one");
    expect(found).toMatchObject({ hash: parent.hash, imagePath: parent.imagePath });
    expect(found!.descriptor.ram).toEqual(parent.descriptor.ram);
    expect(await store.find("two")).toBeUndefined();
    expect((await rejection(store.load("f".repeat(64)))).code).toBe("IMAGE_NOT_FOUND");
  });

  test("gives the memory to the VMs' user to read, and to no other", async () => {
    const { imagePath } = await put(new ParentStore(host), "one", 1);
    const { mode, gid } = statSync(imagePath);
    expect(mode & 0o007).toBe(0);
    if (host.qemu.readOnlyRam) expect(mode & 0o222).toBe(0);
    if (host.user) expect(gid).toBe(host.user.gid);
  });

  test("keeps eight parents, and the ones that were used last", async () => {
    const store = new ParentStore(host);
    const first = await put(store, "parent-0", 0);
    const parents = [first];
    for (let number = 1; number < 8; number++) parents.push(await put(store, `parent-${number}`, number));
    expect(stored()).toHaveLength(8);
    expect((await store.find("parent-0"))?.hash).toBe(first.hash);
    await put(store, "parent-8", 8);
    expect(stored()).toHaveLength(8);
    expect(await store.find("parent-1")).toBeUndefined();
    expect((await store.find("parent-0"))?.hash).toBe(first.hash);
    expect((await store.find("parent-8"))?.descriptor.fingerprint.image).toBe("parent-8");
    // Nothing points at what is gone.
    expect(readdirSync(join(home, "parents", "by-key"))).toHaveLength(8);
  });

  test(
    "takes the same parents from several processes at once",
    async () => {
      await using stack = new AsyncDisposableStack();
      const beginAt = String(Date.now() + 1500);
      const scripts = [0, 1, 2].map((number) => {
        const own = join(directory.path, `process-${number}`);
        mkdirSync(own);
        const path = join(import.meta.dirname, "../support/puts-parents.ts");
        return stack.use(new Script(path, [home, own, beginAt, "24"]));
      });
      const hashes = await Promise.all(
        scripts.map(async (script) => {
          const lines: string[] = [];
          for (let line = await script.line(); line !== "done"; line = await script.line()) lines.push(line);
          return lines;
        }),
      );
      for (const list of hashes) expect(list).toEqual(hashes[0]!);
      expect(new Set(hashes[0]).size).toBe(24);
      await Promise.all(scripts.map(({ exited }) => exited));
      expect(stored().filter((name) => !/^[0-9a-f]{64}$/.test(name))).toEqual([]);
      expect(stored().length).toBeLessThanOrEqual(8);
      const store = new ParentStore(host);
      for (let number = 22; number < 24; number++) {
        const found = await store.find(`key-${number}`);
        expect(found?.descriptor.fingerprint.image).toBe(`parent-${number}`);
      }
    },
    TEST_MS,
  );

  test("takes several parents from one process at once", async () => {
    const store = new ParentStore(host);
    const names = ["a", "b", "c", "d", "e", "f"];
    await Promise.all(names.map((name, at) => put(store, name, at)));
    for (const name of names) expect((await store.find(name))?.descriptor.fingerprint.image).toBe(name);
    expect(stored()).toHaveLength(names.length);
  });

  test("removes what a process left that was killed while it put", () => {
    mkdirSync(join(home, "parents"), { recursive: true });
    mkdirSync(join(home, "parents", `.tmp-${ownerName(999_999_999, "1", 0)}-abcdef`));
    new ParentStore(host);
    expect(stored()).toEqual([]);
  });

  test("leaves nothing when it is aborted, and the frozen VM as it is", async () => {
    const store = new ParentStore(host);
    const frozen = madeUpFrozenVm(directory.path, "one", memory(1));
    const error = await rejection(store.put("one", frozen, AbortSignal.abort()));
    expect(error.code).toBe("ABORTED");
    expect(stored()).toEqual([]);
    expect(existsSync(frozen.imagePath)).toBe(true);
  });
});

describe("a parent on disk that is not what it was", () => {
  const damages: [string, string, (dir: string) => void, RegExp][] = [
    [
      "memory with one bit turned",
      "IMAGE_CORRUPT",
      (dir) => turnBit(join(dir, "memory"), 100_000),
      /memory has changed/,
    ],
    ["memory that was cut", "IMAGE_CORRUPT", (dir) => cut(join(dir, "memory")), /199999 bytes, not 200000/],
    [
      "a descriptor with one bit turned",
      "IMAGE_CORRUPT",
      (dir) => turnBit(join(dir, "descriptor"), 50),
      /descriptor has changed/,
    ],
    [
      "an empty descriptor",
      "IMAGE_CORRUPT",
      (dir) => writeFileSync(join(dir, "descriptor"), ""),
      /descriptor has changed/,
    ],
  ];

  test.each(damages)("is refused: %s", async (_name, code, damage, message) => {
    const store = new ParentStore(host);
    const { hash } = await put(store, "one", 1);
    damage(join(home, "parents", hash));
    const error = await rejection(store.find("one"));
    expect(error.code).toBe(code);
    expect(error.message).toMatch(message);
    expect(error).toHaveProperty("hint", expect.stringContaining(hash));
    // Also after it was found out once.
    expect((await rejection(store.load(hash))).code).toBe(code);
  });

  test("is hashed again after a touch, and not without one", async () => {
    const store = new ParentStore(host);
    const { hash, imagePath } = await put(store, "one", 1);
    const stamp = join(home, "parents", hash, "verified");
    const before = readFileSync(stamp, "utf8");
    await store.find("one");
    expect(readFileSync(stamp, "utf8")).toBe(before);
    utimesSync(imagePath, new Date(), new Date());
    expect((await store.find("one"))?.hash).toBe(hash);
    expect(readFileSync(stamp, "utf8")).not.toBe(before);
  });

  test("is hashed again after the machine was started anew", async () => {
    // What had not reached the disk then is missing in a file whose times say nothing of it.
    const store = new ParentStore(host);
    const { hash } = await put(store, "one", 1);
    const stamp = readFileSync(join(home, "parents", hash, "verified"), "utf8");
    expect(stamp).toContain(readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim());
  });
});

describe.skipIf(!canMount)("on a disk that is full", () => {
  test(
    "put() says so, leaves nothing there and the frozen VM as it is",
    async () => {
      using disk = smallTmpfs(1024);
      await using full = await Host.open({ home: disk.path });
      const store = new ParentStore(full);
      const frozen = madeUpFrozenVm(directory.path, "large", Buffer.alloc(4 << 20, 1));
      const error = await rejection(store.put("large", frozen));
      expect(error.code).toBe("NO_SPACE");
      expect(error.message).toContain(disk.path);
      expect(readdirSync(join(disk.path, "parents"))).toEqual(["by-key"]);
      expect(readdirSync(join(disk.path, "parents", "by-key"))).toEqual([]);
      expect(existsSync(frozen.imagePath)).toBe(true);
      expect((await put(new ParentStore(host), "large", 1)).hash).toMatch(/^[0-9a-f]{64}$/);
    },
    TEST_MS,
  );
});

describe("parentKey()", () => {
  test("follows the values, and not the order in which they are given", () => {
    const key = parentKey({ image: "a", warmUp: null });
    expect(parentKey({ warmUp: null, image: "a" })).toBe(key);
    expect(parentKey({ image: "b", warmUp: null })).not.toBe(key);
    expect(parentKey({ image: "a", warmUp: { argv: ["x"] } })).not.toBe(key);
  });
});

function turnBit(path: string, at: number): void {
  chmodSync(path, 0o600); // a memory image is read-only
  const bytes = readFileSync(path);
  bytes[at] = bytes[at]! ^ 1;
  writeFileSync(path, bytes);
}

function cut(path: string): void {
  chmodSync(path, 0o600);
  truncateSync(path, statSync(path).size - 1);
}
