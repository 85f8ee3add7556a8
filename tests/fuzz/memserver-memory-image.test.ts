import { describe, test } from "bun:test";
import { createHash } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { copyMemory, hashMemory } from "../../memserver/image/memory-image.ts";

const SEED = 20090403;
const MIB = 1024 * 1024;
const PAGE = 4096;

/** Memory of any size with some runs of bytes in it, many of them near the edges of pages and chunks. */
const near = fc.tuple(
  fc.constantFrom(0, 4096, 65_536, MIB - 65_536, MIB, 2 * MIB),
  fc.integer({ min: -2, max: 2 }),
);
const offset = fc.oneof(
  near.map(([edge, by]) => Math.max(0, edge + by)),
  fc.nat(3 * MIB),
);
const memory = fc
  .tuple(
    fc.oneof(offset, fc.nat(3 * MIB)),
    fc.array(fc.tuple(offset, fc.nat(200_000), fc.nat(255)), { maxLength: 5 }),
  )
  .map(([size, runs]) => {
    const content = Buffer.alloc(size);
    for (const [from, length, value] of runs)
      content.fill(value, Math.min(from, size), Math.min(from + length, size));
    return content;
  });

function definition(content: Buffer): string {
  const root = createHash("sha256");
  for (let at = 0; at < content.length; at += PAGE) {
    const page = Buffer.alloc(PAGE);
    content.copy(page, 0, at);
    const empty = page.equals(Buffer.alloc(PAGE));
    root.update(empty ? Buffer.alloc(16) : createHash("sha256").update(page).digest().subarray(0, 16));
  }
  return root.digest("hex");
}

describe("copyMemory()", () => {
  test("copies any memory byte for byte and hashes it as defined", async () => {
    const directory = mkdtempSync(join(tmpdir(), "flurry-fuzz-"));
    try {
      await fc.assert(
        fc.asyncProperty(memory, async (content) => {
          const [from, to] = [join(directory, "from"), join(directory, "to")];
          writeFileSync(from, content);
          rmSync(to, { force: true });
          const image = await copyMemory(from, to);
          const same = readFileSync(to).equals(content) && image.bytes === content.length;
          return (
            same && image.table.root === definition(content) && (await hashMemory(to)) === image.table.root
          );
        }),
        { seed: SEED, numRuns: 150 },
      );
    } finally {
      rmSync(directory, { recursive: true, force: true });
    }
  }, 60_000);
});
