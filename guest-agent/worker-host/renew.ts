import { setRandomSeed } from "bun:jsc";
import { closeSync, openSync, readFileSync, writeSync } from "node:fs";
import { getRandomValues, randomUUID } from "./native-random.ts";
import { refillPools } from "./pools.ts";

/**
 * Bytes of random numbers that Bun keeps in advance for `randomUUID`, `getRandomValues` and `randomUUIDv7`:
 * 2048 by measurement, and twice that is drawn to be sure.
 */
const CACHED_BYTES = 4096;
const DRAW_BYTES = 256;
/** The first numbers after a seed are small where the seed is. */
const SKIPPED_DRAWS = 32;

interface Mapping {
  start: number;
  bytes: Uint8Array;
}

let mappings: Mapping[] = [];
let memory: number | undefined;
const drawn = new Uint8Array(DRAW_BYTES);

/**
 * Finds what will have to be renewed, in the parent: that takes longer than to renew it.
 *
 * Generators of native code that know of forks keep a part of their state in memory that Linux clears in a
 * process's child (madvise(2), MADV_WIPEONFORK): BoringSSL does so, and seeds itself anew when it finds
 * it cleared. The fork of a VM clears nothing, so it is done here.
 */
export function prepareRenewal(): void {
  const areas = readFileSync("/proc/self/smaps", "latin1").split(/^(?=[0-9a-f]+-[0-9a-f]+ )/m);
  mappings = areas.flatMap((area) => {
    const range = /^([0-9a-f]+)-([0-9a-f]+) rw/.exec(area);
    if (!range || !/^VmFlags:.* wf\b/m.test(area)) return [];
    const start = Number.parseInt(range[1]!, 16);
    return [{ start, bytes: new Uint8Array(Number.parseInt(range[2]!, 16) - start) }];
  });
  if (memory === undefined) memory = openSync("/proc/self/mem", "r+");
}

/**
 * Renews all random generators of this process, in a child, before any code of the worker runs. In one
 * turn: nothing else of this program can run meanwhile.
 *
 * @param seed - 32 random bytes of this child's own
 * @returns evidence: of random numbers that were drawn afterwards, which no other child can have drawn
 */
export function renew(seed: Uint8Array): string {
  if (memory !== undefined) {
    for (const { start, bytes } of mappings) writeSync(memory, bytes, 0, bytes.length, start);
  }
  for (let left = CACHED_BYTES; left > 0; left -= DRAW_BYTES) getRandomValues(drawn);
  const words = new Uint32Array(seed.buffer.slice(seed.byteOffset, seed.byteOffset + 8));
  // 32 bits are few for very many children: they also begin at different places of its sequence.
  setRandomSeed(words[0]!);
  for (let skipped = SKIPPED_DRAWS + (words[1]! % 1024); skipped > 0; skipped--) Math.random();
  refillPools();
  return `${randomUUID()} ${Math.random()}`;
}

/** Lets go of what `prepareRenewal` holds. */
export function endRenewal(): void {
  if (memory !== undefined) closeSync(memory);
  memory = undefined;
  mappings = [];
}
