import { closeSync, openSync, readFileSync, readSync } from "node:fs";
import { join } from "node:path";

/** The guest program, in C. */
export const RAM_COUNTER_SOURCE = join(import.meta.dirname, "ram-counter.c");
/** Pages that it writes, and rounds that each page remembers. */
export const COUNTER_PAGES = 16384;
const ENTRIES = 127;
const MAGIC = Buffer.from("RMCOUNTR");
const PAGE_BYTES = 4096;
const CHUNK_BYTES = 1 << 20;

/** One write of the program. */
export interface CounterEntry {
  round: number;
  page: number;
  /** Monotonic clock of the guest, ns. */
  ns: bigint;
  host: string;
}

/** All writes that a guest's memory remembers, in the order in which they were made. */
export function readCounter(ram: { path: string; offset: number; bytes: number }): CounterEntry[] {
  const newest = new Map<number, CounterEntry[]>();
  const buffer = Buffer.alloc(CHUNK_BYTES);
  const fd = openSync(ram.path, "r");
  try {
    for (let done = 0; done < ram.bytes; done += CHUNK_BYTES) {
      if (readSync(fd, buffer, 0, CHUNK_BYTES, ram.offset + done) !== CHUNK_BYTES) {
        throw new Error(`Short read of ${ram.path} at ${ram.offset + done}`);
      }
      for (let at = 0; at < CHUNK_BYTES; at += PAGE_BYTES) keepNewest(newest, buffer, at);
    }
  } finally {
    closeSync(fd);
  }
  return [...newest.values()].flat().sort((a, b) => a.round - b.round || a.page - b.page);
}

/** A guest kernel that moves a page leaves its old content behind: the newer one is the program's. */
function keepNewest(newest: Map<number, CounterEntry[]>, buffer: Buffer, at: number): void {
  if (!buffer.subarray(at, at + 8).equals(MAGIC)) return;
  const page = Number(buffer.readBigUInt64LE(at + 8));
  const entries: CounterEntry[] = [];
  for (let slot = 0; slot < ENTRIES; slot++) {
    const from = at + 32 + slot * 32;
    const round = Number(buffer.readBigUInt64LE(from));
    if (round === 0) continue;
    const host = buffer.toString("latin1", from + 16, from + 32).split("\0")[0]!;
    entries.push({ round, page, ns: buffer.readBigUInt64LE(from + 8), host });
  }
  const known = newest.get(page);
  if (!known || lastRound(known) < lastRound(entries)) newest.set(page, entries);
}

function lastRound(entries: CounterEntry[]): number {
  return Math.max(0, ...entries.map((entry) => entry.round));
}

/** Where a process has a file mapped in its memory, as a place to read from. */
export function mappingOf(pid: number, file: string): { path: string; offset: number; bytes: number } {
  const line = readFileSync(`/proc/${pid}/maps`, "utf8")
    .split("\n")
    .find((entry) => entry.endsWith(` ${file}`));
  const match = /^([0-9a-f]+)-([0-9a-f]+) /.exec(line ?? "");
  if (!match) throw new Error(`Process ${pid} has not mapped ${file}`);
  const offset = Number.parseInt(match[1]!, 16);
  return { path: `/proc/${pid}/mem`, offset, bytes: Number.parseInt(match[2]!, 16) - offset };
}
