import { expect, test } from "bun:test";
import { refill, rememberFilled, stalePools } from "../../guest-agent/worker-host/pools.ts";

/** As what `watchPools` has put in place does. */
function filled<T extends ArrayBufferView<ArrayBuffer>>(array: T, offset?: number, size?: number): T {
  const scale = "BYTES_PER_ELEMENT" in array ? Number(array.BYTES_PER_ELEMENT) : 1;
  const start = array.byteOffset + (offset ?? 0) * scale;
  const bytes = size === undefined ? array.byteLength - (offset ?? 0) * scale : size * scale;
  crypto.getRandomValues(new Uint8Array(array.buffer, start, bytes));
  rememberFilled([array, offset, size]);
  return array;
}

function fork(): void {
  refill(stalePools());
}

/** One byte in 256 is the same by chance. */
function isNew(before: Uint8Array, now: Uint8Array): boolean {
  let differing = 0;
  for (let at = 0; at < now.length; at++) if (before[at] !== now[at]) differing++;
  return differing > now.length * 0.9;
}

test("refill() fills what was filled in the parent, in each fork again, also by an array that is gone", () => {
  const pool = filled(new Uint8Array(1024));
  const behind = Buffer.alloc(4096);
  filled(behind.subarray(100, 400));
  Bun.gc(true);
  for (let time = 0; time < 2; time++) {
    const before = pool.slice();
    const part = Buffer.from(behind);
    fork();
    expect(isNew(before, pool)).toBe(true);
    expect(isNew(part.subarray(100, 400), behind.subarray(100, 400))).toBe(true);
    expect(behind.subarray(0, 100)).toEqual(Buffer.alloc(100));
    expect(behind.subarray(400)).toEqual(Buffer.alloc(4096 - 400));
  }
});

test("refill() leaves alone what is a key, data, or something else by now", () => {
  const key = filled(new Uint8Array(64));
  const data = filled(new Uint8Array(100_000).subarray(0, 65_537));
  const reused = filled(new Uint8Array(4096));
  reused.set([1, 2, 3], 2000);
  const before = [key, data, reused].map((array) => array.slice());
  fork();
  expect([key, data, reused]).toEqual(before);
});

test("refill() fills the part that was filled, counted as randomFillSync() does", () => {
  const words = filled(new Uint32Array(256), 64, 128);
  const before = words.slice();
  fork();
  expect(words.subarray(0, 64)).toEqual(new Uint32Array(64));
  expect(words.subarray(192)).toEqual(new Uint32Array(64));
  expect(isNew(new Uint8Array(before.buffer, 256, 512), new Uint8Array(words.buffer, 256, 512))).toBe(true);
});

test("refill() passes over a buffer that was given away", () => {
  const array = filled(new Uint8Array(512));
  structuredClone(array.buffer, { transfer: [array.buffer] });
  expect(array.length).toBe(0);
  expect(fork).not.toThrow();
});
