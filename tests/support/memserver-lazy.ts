import { closeSync, copyFileSync, openSync, readFileSync, readSync, symlinkSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { buildGuestProgram, FAULTS_SOURCE } from "../../bench/guest/build.ts";
import { PageTable, pageEntry } from "../../memserver/image/page-table.ts";
import type { ControlEvent } from "../../memserver/process/control.ts";
import { PAGE_BYTES } from "../../memserver/stream/format.ts";
import type { Child } from "../../runtime/fork/child.ts";
import { LazyMemory, type LazyOptions } from "../../runtime/fork/lazy-memory.ts";
import { Memserver } from "../../runtime/fork/memserver.ts";
import { Parent } from "../../runtime/fork/parent.ts";
import type { Host } from "../../runtime/vm/host.ts";
import { allowUserfaultfd } from "../../runtime/vm/userfaultfd.ts";
import { baseParent, temporaryDirectory } from "./vm.ts";

const MIXED_SOURCE = join(import.meta.dirname, "memserver-mixed.c");
export const FAULTS = "/opt/faults";
const MIXED = "/opt/mixed";
const MIXED_FILE = "/run/mixed";
export const FAULTS_MIB = 24;
const MIXED_MIB = 16;
/** Small, for there are many of them. */
const MEM_MIB = 128;

/**
 * A parent whose guest has memory that it can check: pages without a pattern, and pages of zeros among
 * others, none of which is looked at unless a test has it done.
 */
export async function checkedParent(host: Host): Promise<Parent> {
  allowUserfaultfd(host.qemu, host.user);
  const [faults, mixed] = await Promise.all(
    [FAULTS_SOURCE, MIXED_SOURCE].map((one) => buildGuestProgram(one)),
  );
  const start = `${FAULTS} start ${FAULTS_MIB} 7 && ${MIXED} fill ${MIXED_FILE} ${MIXED_MIB}`;
  return await baseParent(host, {
    memMiB: MEM_MIB,
    files: [
      { path: FAULTS, data: faults!, mode: 0o755 },
      { path: MIXED, data: mixed!, mode: 0o755 },
    ],
    warmUp: { argv: ["/bin/sh", "-c", start] },
  });
}

/** An image in a directory of its own, where nobody else keeps a working set. */
export interface OwnImage extends Disposable {
  hash: string;
  dir: string;
  table: PageTable;
}

export function ownImage(parent: Parent): OwnImage {
  const from = dirname(parent.imagePath);
  const directory = temporaryDirectory();
  symlinkSync(parent.imagePath, join(directory.path, "memory"));
  for (const name of ["descriptor", "pages"]) copyFileSync(join(from, name), join(directory.path, name));
  return {
    hash: basename(from),
    dir: directory.path,
    table: new PageTable(readFileSync(join(from, "pages"))),
    [Symbol.dispose]: () => directory[Symbol.dispose](),
  };
}

/** The memserver of a runtime, of which a test hears all that it tells, and is asked. */
export class WatchedMemserver extends Memserver {
  /** All events of children, in order. */
  readonly events: (ControlEvent & { child: string })[] = [];
  /** Called when a child is about to be attached, or to be recovered. */
  onAttach: ((request: Parameters<Memserver["attach"]>[0]) => void) | undefined;
  /** Called when one has been: all that it needs to run is on its way. */
  onAttached: ((request: Parameters<Memserver["attach"]>[0]) => void) | undefined;
  #told = Promise.withResolvers<void>();

  override watch(...[name, onEvent, onDeath]: Parameters<Memserver["watch"]>): Disposable {
    const hear = (event: ControlEvent) => {
      if ("child" in event) this.events.push(event);
      onEvent(event);
      this.#told.resolve();
      this.#told = Promise.withResolvers();
    };
    return super.watch(name, hear, onDeath);
  }

  override async attach(...args: Parameters<Memserver["attach"]>): ReturnType<Memserver["attach"]> {
    this.onAttach?.(args[0]);
    const answer = await super.attach(...args);
    this.onAttached?.(args[0]);
    return answer;
  }

  isComplete({ id }: Pick<Child, "id">): boolean {
    return this.events.some((event) => event.event === "complete" && event.child === id);
  }

  /** Waits until a child has all of its memory, or is gone. */
  async complete({ id, exited }: Pick<Child, "id" | "exited">): Promise<void> {
    let gone = false;
    const ended = exited.then(() => {
      gone = true;
    });
    while (!this.isComplete({ id }) && !gone) await Promise.race([this.#told.promise, ended]);
    if (!this.isComplete({ id })) throw new Error(`Child ${id} is gone and was not complete`);
  }

  /** Resident memory of its process in bytes. */
  async rssBytes(): Promise<number> {
    const status = readFileSync(`/proc/${await this.pid()}/status`, "utf8");
    return Number(/^VmRSS:\s+(\d+) kB$/m.exec(status)![1]) * 1024;
  }
}

/** A parent with the same VM, whose children get their memory page by page. */
export function lazyParent(
  parent: Parent,
  host: Host,
  memserver: Memserver,
  image: OwnImage,
  options: LazyOptions = {},
): Parent {
  const { profile, descriptor, imagePath } = parent;
  return new Parent({
    host,
    profile,
    descriptor,
    imagePath,
    lazy: new LazyMemory(memserver, image.hash, options),
  });
}

export interface Checked {
  pages: number;
  /** Pages that are wrong; `zeros` of them read as zeros. */
  wrong: number;
  zeros?: number;
}

/** Has a child read all pages without a pattern in order. */
export async function sum(child: Child): Promise<Checked> {
  return await json(child, [FAULTS, "sum"]);
}

/** Has a child read a word of so many pages in an order of its own. */
export async function touch(
  child: Child,
  count: number,
  seed: number,
): Promise<{ count: number; wrong: number }> {
  return await json(child, [FAULTS, "touch", String(count), String(seed)]);
}

/** Has a child read all of the mixed pages, in an order of its own. */
export async function checkMixed(child: Child, seed: number): Promise<Checked> {
  return await json(child, [MIXED, "check", MIXED_FILE, String(seed)]);
}

export const SUM_RIGHT: Checked = { pages: FAULTS_MIB * 256, wrong: 0 };
export const MIXED_RIGHT: Checked = { pages: MIXED_MIB * 256, zeros: 0, wrong: 0 };

async function json<T>(child: Child, argv: string[]): Promise<T> {
  const { code, stdout, stderr } = await child.agent.run(argv);
  if (code !== 0) throw new Error(`${argv.join(" ")} ended with ${code}: ${stderr}`);
  return JSON.parse(stdout);
}

/**
 * The pages of a VM's main memory that are not as in the image. All of them must be there: whoever reads one
 * of a process that waits for it, waits too.
 */
export function differingPages(pid: number, table: PageTable): number[] {
  const bytes = table.pages * PAGE_BYTES;
  const ranges = readFileSync(`/proc/${pid}/maps`, "utf8")
    .split("\n")
    .map(
      (line) =>
        line
          .split(/[- ]/)
          .slice(0, 2)
          .map((text) => Number.parseInt(text, 16)) as [number, number],
    )
    .filter(([from, to]) => to - from === bytes);
  if (ranges.length !== 1) throw new Error(`${ranges.length} mappings have the size of the memory`);
  const fd = openSync(`/proc/${pid}/mem`, "r");
  try {
    const chunk = Buffer.alloc(256 * PAGE_BYTES);
    const differing: number[] = [];
    for (let from = 0; from < table.pages; from += 256) {
      readSync(fd, chunk, 0, chunk.length, ranges[0]![0] + from * PAGE_BYTES);
      for (let at = 0; at < 256 && from + at < table.pages; at++) {
        const page = chunk.subarray(at * PAGE_BYTES, (at + 1) * PAGE_BYTES);
        if (!isPage(table, from + at, page)) differing.push(from + at);
      }
    }
    return differing;
  } finally {
    closeSync(fd);
  }
}

function isPage(table: PageTable, page: number, data: Buffer): boolean {
  return table.isZero(page) ? pageEntry(data).every((byte) => byte === 0) : table.matches(page, data);
}
