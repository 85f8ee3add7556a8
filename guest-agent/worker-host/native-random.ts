/** Bun's own, whatever a worker puts in their place later. */
const { crypto } = globalThis;
const nativeGetRandomValues = Crypto.prototype.getRandomValues;
const nativeRandomUUID = Crypto.prototype.randomUUID;

export function getRandomValues<T extends ArrayBufferView>(array: T): T {
  return nativeGetRandomValues.call(crypto, array as never) as never;
}

export function randomUUID(): string {
  return nativeRandomUUID.call(crypto);
}
