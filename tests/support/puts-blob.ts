/**
 * Puts a blob and never comes to its end. Arguments: directory of the blobs, key. Prints "writing" when a
 * part is in the file.
 */

import { FileBlobs } from "../../runtime/store/file-blobs.ts";

const [directory, key] = process.argv.slice(2) as [string, string];
const blobs = await FileBlobs.open(directory);
// Something that keeps the process alive.
setInterval(() => undefined, 1_000_000);

async function* endless() {
  yield new Uint8Array(100_000).fill(7);
  process.stdout.write("writing\n");
  await new Promise(() => undefined);
}

await blobs.put(key, endless());
