import { rememberFilled } from "./pools.ts";
import { type Native, replaced } from "./replaced.ts";

let forks = 0;

/** What is drawn from here on is a new child's own. */
export function countFork(): void {
  forks++;
}

/**
 * Has random numbers and keys that are made on other threads made again where a fork came between the call and
 * its end: all children would have been given the same. Has to be called before anything imports
 * `node:crypto`, whose named imports are bound then.
 */
export function watchDraws(): void {
  const node = process.getBuiltinModule("node:crypto");
  for (const name of ["randomInt", "generateKey", "generateKeyPair", "generatePrime"] as const) {
    replaced(node, name, (native, self, args) => calledBack(native, self, args));
  }
  replaced(node, "randomFill", (native, self, args) =>
    calledBack(native, self, args, () => rememberFilled(args)),
  );
  // The last three are the first one's old names.
  for (const name of ["randomBytes", "pseudoRandomBytes", "prng", "rng"]) {
    replaced(node as object as Record<string, unknown>, name, (native, self, args) => {
      const onDrawn = (bytes: unknown) => rememberFilled([bytes]);
      if (typeof args.at(-1) === "function") return calledBack(native, self, args, onDrawn);
      const bytes = Reflect.apply(native, self, args);
      onDrawn(bytes);
      return bytes;
    });
  }
  replaced(SubtleCrypto.prototype, "generateKey", promised);
  replaced(Bun.password, "hash", promised);
}

/** @param onDrawn - gets what the callback will get */
function calledBack(
  native: Native,
  self: unknown,
  args: readonly unknown[],
  onDrawn?: (result: unknown) => void,
): unknown {
  const callback = args.at(-1);
  if (typeof callback !== "function") return Reflect.apply(native, self, args);
  const begun = forks;
  const done = (error: unknown, ...results: unknown[]) => {
    if (!error && begun !== forks) return calledBack(native, self, args, onDrawn);
    if (!error) onDrawn?.(results[0]);
    return callback(error, ...results);
  };
  return Reflect.apply(native, self, [...args.slice(0, -1), done]);
}

/** What it throws at once, it goes on to throw at once. */
function promised(native: Native, self: unknown, args: readonly unknown[]): unknown {
  const begun = forks;
  const draw = Reflect.apply(native, self, args) as Promise<unknown>;
  return draw.then((result) => (begun === forks ? result : promised(native, self, args)));
}
