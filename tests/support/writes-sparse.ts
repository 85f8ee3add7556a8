/**
 * Writes pages into a sparse image, over and over, until it is killed. Prints a line before it opens the
 * image, and before and after each write: "opening", "writing PAGE COUNT", "written PAGE COUNT".
 * Arguments: the image, its pages, a seed.
 */

import { writeSync } from "node:fs";
import { SparseImage } from "../../memserver/image/sparse-image.ts";
import { Dice } from "./dice.ts";
import { pagesOf } from "./memserver-pages.ts";

const [path, pages, seed] = [process.argv[2]!, Number(process.argv[3]), Number(process.argv[4])];
const dice = new Dice(seed);
const all = pagesOf(0, pages);
const pageBytes = all.length / pages;

say("opening");
const image = SparseImage.open(path, pages);
for (;;) {
  const page = dice.int(0, pages - 1);
  const count = dice.int(1, Math.min(256, pages - page));
  say(`writing ${page} ${count}`);
  image.write(page, all.subarray(page * pageBytes, (page + count) * pageBytes));
  say(`written ${page} ${count}`);
}

/** At once: what is said has happened, whenever this process is killed. */
function say(line: string): void {
  writeSync(1, `${line}\n`);
}
