import { describe, expect, test } from "bun:test";
import { mkdirSync, readdirSync, readFileSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { codeOf } from "../../errors/errors.ts";
import { FileBlobs } from "../../runtime/store/file-blobs.ts";
import { contentOf, pieces } from "../support/store-conformance-blobs.ts";
import { temporaryDirectory } from "../support/vm.ts";

const SEED = 20090402;
const CONTENT = new TextEncoder().encode("stored");

/** Parts of keys, most of them of the kind that leads out of a directory somewhere. */
const part = fc.oneof(
  fc.constantFrom("..", ".", "", "...", "..a", ".a", "~temporary", "secret", "%2e%2e", "..%2f", "\0", "\\"),
  fc.constantFrom(
    "..\\",
    "\uff0e\uff0e",
    "\u2215",
    "/",
    "a\n",
    "-rf",
    "con",
    " ",
    "x".repeat(255),
    "x".repeat(256),
  ),
  fc.string({ maxLength: 6, unit: "binary" }),
  fc.stringMatching(/^[A-Za-z0-9_.-]{1,6}$/),
);
const keys = fc.array(part, { minLength: 1, maxLength: 8 }).map((parts) => parts.join("/"));

/** The rule, said in another way than the store says it. */
function mayBeKey(key: string): boolean {
  if (key.length > 1024 || /[^A-Za-z0-9_./-]/.test(key)) return false;
  return key.split("/").every((segment) => !["", ".", ".."].includes(segment) && segment.length <= 255);
}

describe("FileBlobs", () => {
  test("no key leads out of the directory, and what is stored lies where its key says", async () => {
    await fc.assert(
      fc.asyncProperty(keys, async (key) => {
        using directory = temporaryDirectory();
        mkdirSync(join(directory.path, "secret"));
        writeFileSync(join(directory.path, "secret/file"), "outside");
        const blobs = await FileBlobs.open(join(directory.path, "blobs"));
        const before = contentsOf(directory.path);
        const outcomes = [
          await codeFrom(() => blobs.put(key, pieces(CONTENT, 4))),
          await codeFrom(() => blobs.get(key).then((stream) => stream?.cancel())),
        ];
        if (mayBeKey(key)) {
          expect(outcomes).toEqual([undefined, undefined]);
          expect(contentsOf(directory.path)).toEqual({ ...before, [`blobs/${key}`]: "stored" });
          expect(await contentOf(blobs, key)).toEqual(CONTENT);
        } else {
          expect(outcomes).toEqual(["BAD_ARGUMENT", "BAD_ARGUMENT"]);
        }
        const removed = await codeFrom(() => blobs.removeAll(key));
        expect(removed).toBe(mayBeKey(key) ? undefined : "BAD_ARGUMENT");
        expect(contentsOf(directory.path)).toEqual(before);
      }),
      { seed: SEED, numRuns: 400 },
    );
  });

  test("removeAll() takes a link away, and leaves what it points to", async () => {
    using directory = temporaryDirectory();
    mkdirSync(join(directory.path, "secret"));
    writeFileSync(join(directory.path, "secret/file"), "outside");
    const blobs = await FileBlobs.open(join(directory.path, "blobs"));
    await blobs.put("job/1", pieces(CONTENT, 4));
    symlinkSync(join(directory.path, "secret"), join(directory.path, "blobs/job/link"));
    await blobs.removeAll("job");
    expect(contentsOf(directory.path)).toEqual({ "secret/file": "outside" });
  });
});

async function codeFrom(action: () => Promise<unknown>): Promise<string | undefined> {
  try {
    await action();
    return undefined;
  } catch (error) {
    return codeOf(error) ?? String(error);
  }
}

/** All files below a directory, by their paths. */
function contentsOf(dir: string): Record<string, string> {
  const paths = readdirSync(dir, { recursive: true, encoding: "utf8" });
  const files = paths.filter((path) => statSync(join(dir, path)).isFile());
  return Object.fromEntries(files.map((path) => [path, readFileSync(join(dir, path), "utf8")]));
}
