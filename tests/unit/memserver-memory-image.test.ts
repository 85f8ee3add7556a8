import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { createHash } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { copyMemory, hashMemory } from "../../memserver/image/memory-image.ts";
import { rejection } from "../support/agent-peer.ts";

const MIB = 1024 * 1024;
const PAGE = 4096;
let directory: string;

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "flurry-mem-"));
});

afterEach(() => rmSync(directory, { recursive: true, force: true }));

function file(name: string, content: Uint8Array): string {
  const path = join(directory, name);
  writeFileSync(path, content);
  return path;
}

/** Bytes without a pattern, the same at every run. */
function noise(bytes: number): Buffer {
  const blocks = Math.ceil(bytes / 32);
  const parts = Array.from({ length: blocks }, (_, block) =>
    createHash("sha256").update(`block ${block}`).digest(),
  );
  return Buffer.concat(parts).subarray(0, bytes);
}

/** The hash as it is defined: what the tests hold the implementation to. */
function expectedHash(content: Buffer): string {
  const root = createHash("sha256");
  for (let at = 0; at < content.length; at += PAGE) {
    const page = Buffer.alloc(PAGE);
    content.copy(page, 0, at);
    const empty = page.every((byte) => byte === 0);
    root.update(empty ? Buffer.alloc(16) : createHash("sha256").update(page).digest().subarray(0, 16));
  }
  return root.digest("hex");
}

/** Zeros with some bytes set here and there. */
function sparse(bytes: number, offsets: number[]): Buffer {
  const content = Buffer.alloc(bytes);
  for (const offset of offsets) content[offset] = 0xa5;
  return content;
}

const contents: [string, Buffer][] = [
  ["nothing", Buffer.alloc(0)],
  ["one byte", Buffer.of(7)],
  ["less than a chunk", noise(100_001)],
  ["two chunks", noise(2 * MIB)],
  ["an odd size", noise(2 * MIB + 4097)],
  ["zeros alone", Buffer.alloc(3 * MIB)],
  ["zeros of an odd size", Buffer.alloc(MIB + 12_345)],
  ["one byte at the very end", sparse(2 * MIB + 1, [2 * MIB])],
  ["bytes at the edges of holes", sparse(4 * MIB, [0, 65_535, 131_072, MIB - 1, 3 * MIB, 4 * MIB - 1])],
];

describe("hashMemory()", () => {
  test.each(contents)("hashes %s", async (_name, content) => {
    expect(await hashMemory(file("memory", content))).toBe(expectedHash(content));
  });

  test("tells where a byte is, and how many zeros there are", async () => {
    const hashes = await Promise.all(
      [sparse(2 * MIB, [0]), sparse(2 * MIB, [1]), sparse(2 * MIB, [MIB]), sparse(3 * MIB, [0])].map(
        (content, at) => hashMemory(file(`memory-${at}`, content)),
      ),
    );
    expect(new Set(hashes).size).toBe(4);
  });

  test("ends with ABORTED at an abort", async () => {
    const path = file("memory", noise(MIB));
    const error = await rejection(hashMemory(path, { signal: AbortSignal.abort() }));
    expect(error.code).toBe("ABORTED");
  });
});

describe("copyMemory()", () => {
  test.each(contents)("copies %s", async (_name, content) => {
    const from = file("from", content);
    const to = join(directory, "to");
    const { table, ...image } = await copyMemory(from, to);
    expect(image).toEqual({ path: to, bytes: content.length });
    expect(table.root).toBe(expectedHash(content));
    expect(readFileSync(to).equals(content)).toBe(true);
  });

  test("takes no disk for zeros", async () => {
    const to = join(directory, "to");
    await copyMemory(file("from", sparse(16 * MIB, [5 * MIB])), to);
    expect(statSync(to).size).toBe(16 * MIB);
    expect(statSync(to).blocks * 512).toBeLessThan(MIB);
  });

  test("writes over no file that is there", async () => {
    const from = file("from", noise(10));
    const to = file("to", Buffer.from("mine"));
    expect((await rejection(copyMemory(from, to))).code).toBe("EEXIST");
    expect(readFileSync(to, "utf8")).toBe("mine");
  });

  test("ends with ABORTED at an abort in the middle", async () => {
    const abort = new AbortController();
    const copying = copyMemory(file("from", noise(8 * MIB)), join(directory, "to"), { signal: abort.signal });
    abort.abort();
    expect((await rejection(copying)).code).toBe("ABORTED");
  });
});
