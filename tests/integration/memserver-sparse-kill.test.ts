import { expect, test } from "bun:test";
import { existsSync, rmSync } from "node:fs";
import { join } from "node:path";
import { SparseImage } from "../../memserver/image/sparse-image.ts";
import { PAGE_BYTES } from "../../memserver/stream/format.ts";
import { Dice } from "../support/dice.ts";
import { pageOf } from "../support/memserver-pages.ts";
import { openDescriptors, openedSince, Script, temporaryDirectory } from "../support/vm.ts";

const WRITER = join(import.meta.dirname, "../support/writes-sparse.ts");
const SEED = 20090405;
const KILLS = 30;
/** Lives of the writer that one image goes through. */
const LIVES = 3;
const PAGES = 2048;
const TEST_MS = 120_000;

test(
  "a sparse image whose writer was killed has no wrong page, and all that were written",
  async () => {
    using directory = temporaryDirectory();
    const before = openDescriptors();
    const path = join(directory.path, "image");
    const dice = new Dice(SEED);
    const counts: number[] = [];
    let written = new Set<number>();
    for (let kill = 0; kill < KILLS; kill++) {
      if (kill % LIVES === 0) {
        for (const file of [path, `${path}.map`]) rmSync(file, { force: true });
        written = new Set();
      }
      await killWriter(path, dice, written);
      if (existsSync(path)) counts.push(check(path, written));
    }
    expect(openedSince(before)).toEqual([]);
    // It was killed in the middle of its work, and not always at the same place.
    expect(new Set(counts).size).toBeGreaterThan(KILLS / 2);
    expect(counts.some((count) => count > 0 && count < PAGES)).toBe(true);
  },
  TEST_MS,
);

/** Kills it at one of its lines, most of them said right before it opens the image or writes to it. */
async function killWriter(path: string, dice: Dice, written: Set<number>): Promise<void> {
  await using writer = new Script(WRITER, [path, String(PAGES), String(dice.int(0, 1e9))]);
  const last = dice.chance(0.2) ? 0 : 2 * dice.int(0, 15) + 1 + (dice.chance(0.3) ? 1 : 0);
  for (let line = 0; line <= last; line++) {
    const [what, page, count] = (await writer.line()).split(" ");
    if (what !== "written") continue;
    for (let at = 0; at < Number(count); at++) written.add(Number(page) + at);
  }
  await writer.kill();
}

/** Reads all that is there; returns how much it is. */
function check(path: string, written: ReadonlySet<number>): number {
  using image = SparseImage.open(path, PAGES);
  const target = Buffer.alloc(PAGE_BYTES);
  const wrong: number[] = [];
  for (let page = 0; page < PAGES; page++) {
    if (!image.has(page)) continue;
    image.read(page, 1, target, 0);
    if (!target.equals(pageOf(page))) wrong.push(page);
  }
  expect(wrong).toEqual([]);
  expect([...written].filter((page) => !image.has(page))).toEqual([]);
  return image.count;
}
