import { getRandomValues } from "./native-random.ts";
import { type Native, replaced } from "./replaced.ts";

/** What is filled with that many random bytes is taken for a pool: keys are shorter, data is longer. */
const POOL_BYTES = { min: 128, max: 65_536 };

/** Parts of a buffer that were filled, by where they begin. */
interface Pool {
  buffer: WeakRef<ArrayBufferLike>;
  parts: Map<number, Part>;
}

interface Part {
  bytes: number;
  /** Of what was filled in. */
  hash: number | bigint;
}

/** A part that holds what was filled in. */
interface Stale {
  array: Uint8Array;
  part: Part;
}

let pools: Pool[] = [];
let prunedLength = 0;
const byBuffer = new WeakMap<ArrayBufferLike, Pool>();

/**
 * Remembers what is filled with random bytes in the parent: libraries draw many at once and give them out
 * one by one, and children that share them would give out the same. Has to be called before anything
 * imports `node:crypto`, whose named imports are bound then.
 */
export function watchPools(): void {
  const remembering = (target: Native, self: unknown, args: unknown[]) => {
    const result = Reflect.apply(target, self, args);
    rememberFilled(args);
    return result;
  };
  replaced(Crypto.prototype, "getRandomValues", remembering);
  // With import this module would be bound too early.
  const node = process.getBuiltinModule("node:crypto");
  replaced(node, "getRandomValues", remembering);
  replaced(node, "randomFillSync", remembering);
}

/** Remembers what a call like `randomFillSync(array, offset, size)` has filled. */
export function rememberFilled([array, offset, size]: readonly unknown[]): void {
  if (!ArrayBuffer.isView(array)) {
    if (array instanceof ArrayBuffer) rememberFilled([new Uint8Array(array), offset, size]);
    return;
  }
  const scale = "BYTES_PER_ELEMENT" in array ? Number(array.BYTES_PER_ELEMENT) : 1;
  const skipped = typeof offset === "number" ? offset * scale : 0;
  const bytes = typeof size === "number" ? size * scale : array.byteLength - skipped;
  if (bytes >= POOL_BYTES.min && bytes <= POOL_BYTES.max) {
    remember(new Uint8Array(array.buffer, array.byteOffset + skipped, bytes));
  }
}

/** The pools that a fork would copy. What was written to meanwhile is something else by now. */
export function stalePools(): Stale[] {
  prune();
  return pools.flatMap(({ buffer, parts }) => {
    const memory = buffer.deref();
    if (!memory) return [];
    const stale: Stale[] = [];
    for (const [start, part] of parts) {
      const array = partOf(memory, start, part);
      if (array && Bun.hash(array) === part.hash) stale.push({ array, part });
      else parts.delete(start);
    }
    return stale;
  });
}

/** Fills them anew, and remembers them for the next fork. */
export function refill(stale: readonly Stale[]): void {
  for (const { array, part } of stale) part.hash = Bun.hash(getRandomValues(array));
}

function remember(array: Uint8Array): void {
  const { buffer, byteOffset, length } = array;
  let pool = byBuffer.get(buffer);
  if (!pool) {
    pool = { buffer: new WeakRef(buffer), parts: new Map() };
    byBuffer.set(buffer, pool);
    pools.push(pool);
    if (pools.length > 2 * prunedLength + 64) prune();
  }
  pool.parts.set(byteOffset, { bytes: length, hash: Bun.hash(array) });
}

function prune(): void {
  pools = pools.filter(({ buffer }) => buffer.deref() !== undefined);
  prunedLength = pools.length;
}

/** Undefined where the buffer has been given away, or has become shorter. */
function partOf(memory: ArrayBufferLike, start: number, { bytes }: Part): Uint8Array | undefined {
  return start + bytes <= memory.byteLength ? new Uint8Array(memory, start, bytes) : undefined;
}
