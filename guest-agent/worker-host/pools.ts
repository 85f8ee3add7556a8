import { getRandomValues } from "./native-random.ts";

/** From here on what is filled with random bytes is taken for a pool. Keys are shorter. */
const POOL_BYTES = 128;

type Pool = WeakRef<ArrayBufferView<ArrayBuffer>>;
type Fill = (array: ArrayBufferView<ArrayBuffer>, ...rest: unknown[]) => unknown;

let pools: Pool[] = [];

/**
 * Remembers the arrays that are filled with random bytes in the parent: libraries such as nanoid draw many at
 * once and give them out one by one, and children that share them would give out the same. Has to be
 * called before anything imports `node:crypto`, whose named imports are bound then.
 */
export function watchPools(): void {
  const values = Crypto.prototype.getRandomValues;
  Crypto.prototype.getRandomValues = watched(values as Fill) as typeof values;
  // With import this module would be bound too early.
  const node = process.getBuiltinModule("node:crypto");
  node.randomFillSync = watched(node.randomFillSync as Fill) as typeof node.randomFillSync;
  node.randomFill = watched(node.randomFill as Fill) as typeof node.randomFill;
}

/** Fills what is left of them anew. */
export function refillPools(): void {
  for (const pool of pools) {
    const array = pool.deref();
    if (!array) continue;
    const bytes = new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
    // As much as one call may ask for.
    for (let at = 0; at < bytes.length; at += 65_536) getRandomValues(bytes.subarray(at, at + 65_536));
  }
}

function watched(fill: Fill): Fill {
  const wrapper = function (this: unknown, array: ArrayBufferView<ArrayBuffer>, ...rest: unknown[]): unknown {
    if (ArrayBuffer.isView(array) && array.byteLength >= POOL_BYTES) remember(array);
    return fill.call(this, array, ...rest);
  };
  Object.defineProperty(wrapper, "name", { value: fill.name });
  return wrapper;
}

function remember(array: ArrayBufferView<ArrayBuffer>): void {
  if (pools.some((pool) => pool.deref() === array)) return;
  pools = pools.filter((pool) => pool.deref() !== undefined);
  pools.push(new WeakRef(array));
}
