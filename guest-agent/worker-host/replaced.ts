export type Native = (...args: unknown[]) => unknown;

/**
 * Puts a function in the place of a native one that looks the same: name, length, source, and what it holds.
 *
 * @param apply - is called in its place
 */
export function replaced<T extends object>(
  owner: T,
  name: keyof T,
  apply: (native: Native, self: unknown, args: unknown[]) => unknown,
): void {
  const native = owner[name];
  if (typeof native !== "function") throw new TypeError(`There is no function ${String(name)} to replace`);
  // Some are not writable.
  Object.defineProperty(owner, name, {
    value: new Proxy(native, { apply: (target, self, args) => apply(target as never, self, args) }),
  });
}
