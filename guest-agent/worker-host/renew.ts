import { setRandomSeed } from "bun:jsc";
import { countFork } from "./in-flight.ts";
import { getRandomValues, randomUUID } from "./native-random.ts";
import { findNativeState, hasNoticed, type NativeState, staleNativeState } from "./native-state.ts";
import { refill, stalePools } from "./pools.ts";

/**
 * Bun draws random bytes in advance, and takes from them for `randomUUID`, `randomUUIDv7` and small
 * `getRandomValues`: 2048 bytes by measurement. So many are drawn at most until it has drawn new ones.
 */
const CACHED_MAX = 16_384;
const DRAW_BYTES = 32;
/** The first numbers after a seed are small where the seed is. */
const SKIPPED_DRAWS = 32;
/** Draws after which a loop of them is compiled. */
const COMPILED_DRAWS = 100_000;

interface Renewal {
  native: NativeState;
  pools: ReturnType<typeof stalePools>;
}

let renewal: Renewal | undefined;
const drawn = new Uint8Array(DRAW_BYTES);

/**
 * Finds what will have to be renewed, in the parent: that takes longer than to renew it.
 *
 * @throws Error when Bun's generator does not do what is relied on: children would draw the same
 */
export function prepareRenewal(): void {
  // There is no state before the first use.
  getRandomValues(drawn);
  const native = findNativeState();
  staleNativeState(native);
  drawNew(native);
  renewal = { native, pools: stalePools() };
}

/**
 * Renews all random generators of this process, in a child, before any code of the worker runs. In one
 * turn: nothing else of this program can run meanwhile. All that it does has been rehearsed in the parent
 * (rehearse.ts), and uses few native functions, since each costs a child its first use.
 *
 * @returns evidence: of random numbers that were drawn afterwards, which no other child can have drawn
 * @throws Error when a generator has not seeded itself anew
 */
export function renew(): string {
  if (!renewal) throw new Error("A fork came without its preparation");
  const { native, pools } = renewal;
  countFork();
  staleNativeState(native);
  drawNew(native);
  setRandomSeed((drawn[0]! | (drawn[1]! << 8) | (drawn[2]! << 16) | (drawn[3]! << 24)) >>> 0);
  // 32 bits are few for very many children: they also begin at different places of its sequence.
  skip(SKIPPED_DRAWS + (drawn[4]! | ((drawn[5]! & 3) << 8)));
  refill(pools);
  return `${randomUUID()} ${(Math.random() * 2 ** 31) | 0}`;
}

/** Has what takes many turns in a child compiled in the parent. */
export function compileRenewal(): void {
  skip(COMPILED_DRAWS);
}

/** Forgets what `prepareRenewal` has found. */
export function endRenewal(): void {
  renewal = undefined;
}

/** Empties Bun's cache: when BoringSSL was asked for more, all that is left of it is new. */
function drawNew(native: NativeState): void {
  for (let count = 0; count < CACHED_MAX; count += DRAW_BYTES) {
    getRandomValues(drawn);
    if (hasNoticed(native)) return;
  }
  throw new Error("Bun's random generator has not seeded itself anew");
}

function skip(draws: number): void {
  for (let left = draws; left > 0; left--) Math.random();
}
