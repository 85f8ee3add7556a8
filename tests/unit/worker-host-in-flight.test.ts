import { afterAll, beforeAll, expect, test } from "bun:test";
import { countFork, watchDraws } from "../../guest-agent/worker-host/in-flight.ts";

type Callback = (error: unknown, ...results: unknown[]) => void;

const node = process.getBuiltinModule("node:crypto");
const holders = [node, SubtleCrypto.prototype, Bun.password] as unknown as Record<string, unknown>[];
const kept = holders.map((holder) => Object.getOwnPropertyDescriptors(holder));
/** Draws that were begun: each ends when the test says so. */
const begun: { args: unknown[]; end: (...results: unknown[]) => void; fail: (error: unknown) => void }[] = [];

// The file has a process of its own with other files: all is put back.
beforeAll(() => {
  const byCallback = (...args: unknown[]) => {
    const callback = args.at(-1) as Callback;
    begun.push({ args, end: (...results) => callback(null, ...results), fail: (error) => callback(error) });
  };
  const byPromise = (...args: unknown[]) =>
    new Promise((resolve, reject) => begun.push({ args, end: resolve, fail: reject }));
  for (const name of ["randomInt", "generateKeyPair", "randomFill", "randomBytes"]) {
    Object.defineProperty(node, name, { value: byCallback });
  }
  Object.defineProperty(SubtleCrypto.prototype, "generateKey", { value: byPromise });
  Object.defineProperty(Bun.password, "hash", { value: byPromise });
  watchDraws();
});

afterAll(() => {
  holders.forEach((holder, index) => {
    Object.defineProperties(holder, kept[index]!);
  });
});

test("what ends after a fork is made again, for callbacks", () => {
  const got: unknown[][] = [];
  node.generateKeyPair("ed25519", {}, (...results) => got.push(results));
  countFork();
  begun.pop()!.end("old public key", "old private key");
  expect(got).toEqual([]);
  expect(begun[0]!.args.slice(0, -1)).toEqual(["ed25519", {}]);
  // And once more, where a fork comes between again.
  countFork();
  begun.pop()!.end("old, too", "old, too");
  begun.pop()!.end("new public key", "new private key");
  expect(got as unknown[]).toEqual([[null, "new public key", "new private key"]]);
  expect(begun).toEqual([]);
});

test("what ends after a fork is made again, for promises", async () => {
  const hash = Bun.password.hash("a", "bcrypt");
  const key = crypto.subtle.generateKey("Ed25519", true, ["sign"]);
  countFork();
  for (const draw of begun.splice(0)) draw.end("old");
  while (begun.length < 2) await Promise.resolve();
  expect(begun.map(({ args }) => args)).toEqual([
    ["a", "bcrypt"],
    ["Ed25519", true, ["sign"]],
  ]);
  for (const draw of begun.splice(0)) draw.end("new");
  expect<unknown[]>(await Promise.all([hash, key])).toEqual(["new", "new"]);
});

test("what ends without a fork between, or fails, is passed on", async () => {
  const got: unknown[][] = [];
  node.randomInt(9, (...results) => got.push(results));
  begun.pop()!.end(5);
  node.randomBytes(9, (...results) => got.push(results));
  countFork();
  begun.pop()!.fail("it cannot");
  expect<unknown>(got).toEqual([[null, 5], ["it cannot"]]);
  const hash = Bun.password.hash("a");
  countFork();
  begun.pop()!.fail(new Error("it cannot"));
  expect(await hash.catch((error: Error) => error.message)).toBe("it cannot");
  expect(begun).toEqual([]);
});
