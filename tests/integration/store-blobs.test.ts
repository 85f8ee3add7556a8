import { describe, expect, test } from "bun:test";
import { readdirSync, readFileSync, statSync, truncateSync } from "node:fs";
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { FileBlobs } from "../../runtime/store/file-blobs.ts";
import { rejection } from "../support/agent-peer.ts";
import { blobStoreConformance, contentOf, pieces } from "../support/store-conformance-blobs.ts";
import { inDirectory } from "../support/store-port.ts";
import {
  canMount,
  openDescriptors,
  openedSince,
  Script,
  smallTmpfs,
  temporaryDirectory,
} from "../support/vm.ts";

const MIB = 1024 * 1024;
const putsBlob = fileURLToPath(new URL("../support/puts-blob.ts", import.meta.url));
const streamsBlob = fileURLToPath(new URL("../support/streams-blob.ts", import.meta.url));

blobStoreConformance(inDirectory((dir) => FileBlobs.open(join(dir, "blobs"))));

describe("FileBlobs", () => {
  test("shows nothing of a put() whose process is killed, and open() removes what it left", async () => {
    using directory = temporaryDirectory();
    const dir = join(directory.path, "blobs");
    await using writer = new Script(putsBlob, [dir, "job/1"]);
    expect(await writer.line()).toBe("writing");
    await writer.kill();
    expect(filesBelow(dir)).toHaveLength(1);
    const blobs = await FileBlobs.open(dir);
    expect(filesBelow(dir)).toEqual([]);
    expect(await blobs.get("job/1")).toBeUndefined();
  });

  test("is its owner's alone, under any umask", async () => {
    using directory = temporaryDirectory();
    const dir = join(directory.path, "blobs");
    const umask = process.umask(0);
    try {
      const blobs = await FileBlobs.open(dir);
      await blobs.put("job/0/1", pieces(new Uint8Array(10), 10));
    } finally {
      process.umask(umask);
    }
    const modes = [".", "job", "job/0", "job/0/1"].map((path) => statSync(join(dir, path)).mode & 0o777);
    expect(modes).toEqual([0o700, 0o700, 0o700, 0o600]);
  });

  test("refuses a key below a blob and one that others are below, and changes nothing", async () => {
    using directory = temporaryDirectory();
    const blobs = await FileBlobs.open(join(directory.path, "blobs"));
    await blobs.put("a/b", pieces(new Uint8Array(3), 3));
    for (const key of ["a", "a/b/c"]) {
      const error = await rejection(blobs.put(key, pieces(new Uint8Array(9), 3)));
      expect(error.code).toBe("STORE_FAILED");
    }
    expect(filesBelow(join(directory.path, "blobs"))).toEqual(["a/b"]);
    expect(await contentOf(blobs, "a/b")).toEqual(new Uint8Array(3));
  });

  test("fails a read of a file that is shorter than it was, rather than to end it", async () => {
    using directory = temporaryDirectory();
    const dir = join(directory.path, "blobs");
    const blobs = await FileBlobs.open(dir);
    await blobs.put("key", pieces(new Uint8Array(2 * MIB), MIB));
    const stream = (await blobs.get("key"))!;
    truncateSync(join(dir, "key"), MIB);
    const error = await rejection(new Response(stream).arrayBuffer());
    expect(error.message).toContain(`ends after ${MIB} of ${2 * MIB} bytes`);
  });

  test("has no file open after streams that were read, canceled, or failed, and after puts that failed", async () => {
    using directory = temporaryDirectory();
    const dir = join(directory.path, "blobs");
    const blobs = await FileBlobs.open(dir);
    const before = openDescriptors();
    await blobs.put("key", pieces(new Uint8Array(2 * MIB), MIB));
    await contentOf(blobs, "key");
    await (await blobs.get("key"))!.cancel();
    const failing = (await blobs.get("key"))!;
    truncateSync(join(dir, "key"), 0);
    await rejection(new Response(failing).arrayBuffer());
    expect(await blobs.get("never")).toBeUndefined();
    await mkdir(join(dir, "directory"));
    expect(await blobs.get("directory")).toBeUndefined();
    await rejection(blobs.put("directory", pieces(new Uint8Array(9), 3)));
    expect(openedSince(before)).toEqual([]);
  });

  test("put() and get() hold a window of a large content only", async () => {
    using directory = temporaryDirectory();
    const size = 512 * MIB;
    // In a process of its own: other tests leave garbage that is collected at any time.
    await using script = new Script(streamsBlob, [join(directory.path, "blobs"), String(size)]);
    const [read, grown] = (await script.line()).split(" ").map(Number);
    expect(read).toBe(size);
    expect(grown).toBeLessThan(size / 4);
  });

  test.skipIf(!canMount)("calls a full disk NO_SPACE, leaves nothing of the put(), and goes on", async () => {
    using disk = smallTmpfs(2048);
    const dir = join(disk.path, "blobs");
    const blobs = await FileBlobs.open(dir);
    await blobs.put("small", pieces(new Uint8Array(MIB).fill(1), 65_536));
    const error = await rejection(blobs.put("job/large", pieces(new Uint8Array(2 * MIB), 65_536)));
    expect(error.code).toBe("NO_SPACE");
    expect(filesBelow(dir)).toEqual(["small"]);
    await blobs.removeAll("small");
    await blobs.put("job/large", pieces(new Uint8Array(1.5 * MIB), 65_536));
    expect(readFileSync(join(dir, "job/large")).length).toBe(1.5 * MIB);
  });
});

/** Paths of all files, not of directories. */
function filesBelow(dir: string): string[] {
  return readdirSync(dir, { recursive: true, encoding: "utf8" })
    .filter((path) => statSync(join(dir, path)).isFile())
    .sort();
}
