import { once } from "node:events";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { dial } from "../memserver/child/dial.ts";
import { FlatImage } from "../memserver/image/flat-image.ts";
import { PageTable } from "../memserver/image/page-table.ts";
import { PAGE_BYTES } from "../memserver/stream/format.ts";
import { ReturnPathReader } from "../memserver/stream/return-path.ts";
import { StreamWriter } from "../memserver/stream/writer.ts";
import { orAborted } from "../memserver/waiting.ts";
import { type Distribution, distributionOf } from "../runtime/stats.ts";
import type { Host } from "../runtime/vm/host.ts";
import { Shell } from "../runtime/vm/shell.ts";
import type { PagesParent } from "./pages-parent.ts";

const SECTION_ID = 1;
const CHUNK_BYTES = 1024 * 1024;

/** Megabytes (10^6 bytes) a second of a whole image that goes into one child. */
export interface StreamFigures {
  /** Pages from the memserver, in the background and without a limit. */
  memserver: Distribution;
  /** The same bytes, made beforehand and written as fast as QEMU takes them: its own limit. */
  qemu: Distribution;
}

/** Measures both in turn, so that whatever else the machine does meets both. */
export async function benchStream(
  host: Host,
  pages: PagesParent,
  rounds: number,
  signal?: AbortSignal,
): Promise<StreamFigures> {
  const stream = await wholeStream(pages);
  const bytes = pages.dataPages * PAGE_BYTES;
  const memserver: number[] = [];
  const qemu: number[] = [];
  for (let round = 0; round < rounds; round++) {
    memserver.push(bytes / 1e3 / (await fromMemserver(host, pages, round, signal)));
    qemu.push(bytes / 1e3 / (await fromBuffer(host, pages, stream, signal)));
  }
  return { memserver: distributionOf(memserver), qemu: distributionOf(qemu) };
}

/** Milliseconds until a child has all of its memory. */
async function fromMemserver(
  host: Host,
  pages: PagesParent,
  round: number,
  signal: AbortSignal | undefined,
): Promise<number> {
  await using shell = await Shell.start({ host, profile: pages.mapped.profile, preempt: false }, signal);
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  const child = `stream-${round}`;
  using _watch = pages.memserver.watch(
    child,
    ({ event }) => (event === "complete" ? resolve() : reject(new Error(`The child was ${event}`))),
    reject,
  );
  const began = performance.now();
  await pages.memserver.attach(
    {
      ...{ child, image: pages.image, socket: shell.memserverPath, preempt: false, recover: false },
      ...{ background: { afterMs: 0, bytesPerSecond: null }, workingSet: false, measure: false },
    },
    { signal },
  );
  await orAborted(promise, signal);
  const ms = performance.now() - began;
  await pages.memserver.detach(child, false);
  return ms;
}

/** All that a child gets, cut so that records are whole and answers can go between. */
interface WholeStream {
  prologue: Buffer;
  chunks: Buffer[];
  end: Buffer;
  isZero: (page: number) => boolean;
}

async function fromBuffer(
  host: Host,
  { mapped }: PagesParent,
  stream: WholeStream,
  signal: AbortSignal | undefined,
): Promise<number> {
  await using shell = await Shell.start({ host, profile: mapped.profile, preempt: false }, signal);
  const { block, bytes } = mapped.descriptor.ram;
  const running = Promise.withResolvers<void>();
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  const began = performance.now();
  const socket = await dial(shell.memserverPath, signal);
  socket.on("error", reject);
  const answers = new StreamWriter();
  /** QEMU asks for a page twice now and then, and takes a second one for an error. */
  const answered = new Set<string>();
  /** Nothing may be said after the end; then QEMU takes what is missing for zeros itself. */
  let over = false;
  const reader = new ReturnPathReader(
    [{ name: block, bytes }],
    (message) => {
      if (message.kind === "shut") resolve();
      if (message.kind === "pong") running.resolve();
      if (message.kind !== "request" || over) return;
      const { block: asked, start } = message;
      const key = `${asked} ${start}`;
      // Of the others, all are on their way.
      if (answered.has(key) || (asked === block && !stream.isZero(start / PAGE_BYTES))) return;
      answered.add(key);
      socket.write(answers.zero(asked, start, true).take());
    },
    { unlisted: true },
  );
  socket.on("data", (chunk: Uint8Array) => reader.push(chunk));
  for (const chunk of [stream.prologue, ...stream.chunks]) {
    if (!socket.write(chunk)) await orAborted(once(socket, "drain"), signal);
  }
  await orAborted(Promise.race([running.promise, promise]), signal);
  over = true;
  socket.write(stream.end);
  await orAborted(promise, signal);
  const ms = performance.now() - began;
  socket.destroy();
  return ms;
}

async function wholeStream({ mapped, dir }: PagesParent): Promise<WholeStream> {
  const { fingerprint, ram, deviceState } = mapped.descriptor;
  const table = new PageTable(readFileSync(join(dir, "pages")));
  await using image = new FlatImage(mapped.imagePath, table);
  const prologue = new StreamWriter()
    .header()
    .configuration(fingerprint.machine)
    .openReturnPath()
    .advise()
    .blocks(SECTION_ID, [{ name: ram.block, bytes: ram.bytes }])
    .discard(ram.block, [{ start: 0, length: PAGE_BYTES }])
    .package((inner) => inner.listen().devices(deviceState.subarray(0, -1)).ping(1).run())
    .part(SECTION_ID)
    .take();
  const page = Buffer.alloc(PAGE_BYTES);
  const chunks: Buffer[] = [];
  let writer = new StreamWriter();
  for (let next = 0; next < table.pages; next++) {
    if (table.isZero(next)) continue;
    image.read(next, 1, page, 0);
    writer.pages(ram.block, next * PAGE_BYTES, page);
    if (writer.length < CHUNK_BYTES) continue;
    chunks.push(writer.take());
    // A new one names its block first, whatever was sent before it.
    writer = new StreamWriter();
  }
  chunks.push(writer.take());
  const end = new StreamWriter().sectionEnd(SECTION_ID).end(SECTION_ID).sectionEnd(SECTION_ID).eof().take();
  return { prologue, chunks, end, isZero: (number) => table.isZero(number) };
}
