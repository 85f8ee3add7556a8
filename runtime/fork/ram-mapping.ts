import { closeSync, openSync, readFileSync, readSync } from "node:fs";
import { FlurryError } from "../../errors/errors.ts";
import { PAGE_BYTES } from "../../memserver/stream/format.ts";

/** proc(5), pagemap: in the upper half of an entry. */
const PRESENT = 0x80000000;
const SWAPPED = 0x40000000;
/** The page is the file's, or shared. */
const OF_FILE = 0x20000000;
const ENTRY_BYTES = 8;

/** Adjacent pages: the number of the first one, and how many they are. */
export interface PageRun {
  first: number;
  count: number;
}

/** Pages of a memory image that are not as in the image below. */
export interface Delta {
  runs: readonly PageRun[];
  /** Their bytes, one run after the other. */
  data: Buffer;
}

/** How a QEMU process has its guest's RAM mapped: privately, from a file that nobody writes. */
export class RamMapping implements Disposable {
  readonly #start: number;
  readonly #pages: number;
  readonly #memory: number;
  readonly #pagemap: number;

  private constructor(start: number, pages: number, memory: number, pagemap: number) {
    this.#start = start;
    this.#pages = pages;
    this.#memory = memory;
    this.#pagemap = pagemap;
  }

  /**
   * Opens the mapping of a process.
   *
   * @param bytes - RAM of the guest
   * @throws FlurryError FORK_FAILED when there is none, or when this process may not read it
   */
  static open(pid: number, bytes: number): RamMapping {
    try {
      const start = startOf(readFileSync(`/proc/${pid}/maps`, "latin1"), bytes);
      if (start === undefined) throw new Error(`no private mapping of ${bytes} bytes of a file`);
      const memory = openSync(`/proc/${pid}/mem`, "r");
      try {
        return new RamMapping(start, bytes / PAGE_BYTES, memory, openSync(`/proc/${pid}/pagemap`, "r"));
      } catch (error) {
        closeSync(memory);
        throw error;
      }
    } catch (cause) {
      const reason = cause instanceof Error ? cause.message : String(cause);
      throw new FlurryError("FORK_FAILED", `Cannot read the memory of QEMU (pid ${pid}): ${reason}`, {
        cause,
      });
    }
  }

  /** The pages that the guest has written since it started, with its CPUs stopped. */
  changed(): Delta {
    const runs = this.#changedRuns();
    const pages = runs.reduce((sum, { count }) => sum + count, 0);
    const data = Buffer.allocUnsafeSlow(pages * PAGE_BYTES);
    let at = 0;
    for (const { first, count } of runs) {
      const end = at + count * PAGE_BYTES;
      for (let from = this.#start + first * PAGE_BYTES; at < end; ) {
        const read = readSync(this.#memory, data, at, end - at, from);
        if (read <= 0)
          throw new FlurryError("FORK_FAILED", `Cannot read page ${first} of the guest's memory`);
        at += read;
        from += read;
      }
    }
    return { runs, data };
  }

  #changedRuns(): PageRun[] {
    const bytes = Buffer.allocUnsafeSlow(this.#pages * ENTRY_BYTES);
    const read = readSync(this.#pagemap, bytes, 0, bytes.length, (this.#start / PAGE_BYTES) * ENTRY_BYTES);
    if (read !== bytes.length)
      throw new FlurryError("FORK_FAILED", "Cannot read the table of the guest's pages");
    // 32 bits at a time: numbers have no 64.
    const halves = new Uint32Array(bytes.buffer, bytes.byteOffset, this.#pages * 2);
    const runs: PageRun[] = [];
    let last: PageRun | undefined;
    for (let page = 0; page < this.#pages; page++) {
      const upper = halves[2 * page + 1]!;
      if ((upper & (PRESENT | SWAPPED)) === 0 || (upper & OF_FILE) !== 0) continue;
      if (last && last.first + last.count === page) {
        last.count += 1;
      } else {
        last = { first: page, count: 1 };
        runs.push(last);
      }
    }
    return runs;
  }

  [Symbol.dispose](): void {
    closeSync(this.#memory);
    closeSync(this.#pagemap);
  }
}

/** Where adjacent private mappings of one file begin that have so many bytes together (proc(5), maps). */
function startOf(maps: string, bytes: number): number | undefined {
  let run = { start: 0, end: 0, inode: "" };
  for (const line of maps.split("\n")) {
    const [, from, to, inode] = /^([0-9a-f]+)-([0-9a-f]+) rw-p [0-9a-f]+ \S+ ([1-9]\d*)/.exec(line) ?? [];
    if (!from || !to || !inode) continue;
    const [start, end] = [Number.parseInt(from, 16), Number.parseInt(to, 16)];
    run = run.end === start && run.inode === inode ? { ...run, end } : { start, end, inode };
    if (run.end - run.start === bytes) return run.start;
  }
  return undefined;
}
