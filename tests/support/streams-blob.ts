/**
 * Puts a large blob and reads it again. Arguments: directory of the blobs, bytes. Prints the bytes that it
 * read, and how much memory it came to have more than at the start.
 */

import { FileBlobs } from "../../runtime/store/file-blobs.ts";

const directory = process.argv[2]!;
const size = Number(process.argv[3]);
const blobs = await FileBlobs.open(directory);
const atStart = process.memoryUsage.rss();
let peak = atStart;

async function* source() {
  const piece = new Uint8Array(65_536).fill(1);
  for (let sent = 0; sent < size; sent += piece.length) {
    peak = Math.max(peak, process.memoryUsage.rss());
    yield piece.slice();
  }
}

await blobs.put("large", source(), new AbortController().signal);
let read = 0;
for await (const part of (await blobs.get("large"))!) {
  read += part.length;
  peak = Math.max(peak, process.memoryUsage.rss());
}
process.stdout.write(`${read} ${peak - atStart}\n`);
