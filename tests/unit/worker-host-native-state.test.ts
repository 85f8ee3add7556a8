import { Database } from "bun:sqlite";
import { expect, test } from "bun:test";
import { randomBytes } from "node:crypto";
import { runInNewContext } from "node:vm";
import { findNativeState, hasNoticed, staleNativeState } from "../../guest-agent/worker-host/native-state.ts";
import { findSqlite, findWebKit } from "../../guest-agent/worker-host/static-state.ts";

test("findNativeState() finds the generators of this Bun, and they seed themselves anew", () => {
  using database = new Database(":memory:");
  const random = database.query("SELECT hex(randomblob(8)) AS value");
  random.get();
  randomBytes(8);
  const state = findNativeState();
  expect(state.wiped.length).toBeGreaterThan(0);
  expect([state.sqlite.length, state.webkit.length]).toEqual([1, 1]);
  staleNativeState(state);
  expect(hasNoticed(state)).toBe(false);
  randomBytes(8);
  expect(hasNoticed(state)).toBe(true);
  random.get();
  expect(state.sqlite[0]).not.toBe(0);
  runInNewContext("Math.random()");
  expect(state.webkit[0]).not.toBe(0);
});

test("findSqlite() tells SQLite's generator from others that are made of ChaCha20, too", () => {
  const memory = new Uint8Array(4096);
  const place = (at: number, nonce: number, left: number) => {
    memory.set(Buffer.from("expand 32-byte k"), at);
    const words = new DataView(memory.buffer);
    words.setUint32(at + 48, 7, true);
    words.setUint32(at + 52, nonce, true);
    memory[at + 128] = left;
  };
  place(101, 5, 8); // where no word begins
  place(400, 0, 8); // a counter of 64 bits
  place(800, 5, 65); // more left than there is
  expect(findSqlite([memory]).length).toBe(0);
  place(3980, 5, 8); // cut off
  expect(findSqlite([memory]).length).toBe(0);
  place(1200, 5, 64);
  expect(findSqlite([new Uint8Array(64), memory]).byteOffset).toBe(1200);
  expect(findSqlite([]).length).toBe(0);
});

test("findWebKit() finds 256 values that all differ, and what counts behind them", () => {
  const memory = new Uint8Array(8192);
  const words = new Int32Array(memory.buffer);
  const place = (count: number, left: number) => {
    for (let value = 0; value < 256; value++) memory[count * 4 - 257 + value] = (value * 7) & 0xff;
    words[count] = left;
  };
  words[10] = 5; // too near to the beginning
  place(200, 0);
  place(400, 1_600_001);
  place(600, 1000);
  memory[600 * 4 - 30] = memory[600 * 4 - 31]!;
  expect(findWebKit([memory]).length).toBe(0);
  place(1000, 1_600_000);
  expect(findWebKit([new Uint8Array(3), memory]).byteOffset).toBe(4000);
});
