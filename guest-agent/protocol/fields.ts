import { AgentError } from "./errors.ts";

/** The third part of a message: names and values, none of them checked yet. */
export type Fields = Record<string, unknown>;

/** Each takes one value of its kind. @throws AgentError AGENT_PROTOCOL naming the field */
export function integer(value: unknown, name: string, max: number = Number.MAX_SAFE_INTEGER): number {
  // 64 bits wide on the wire: still a number if it fits one.
  const number = typeof value === "bigint" && value <= Number.MAX_SAFE_INTEGER ? Number(value) : value;
  if (typeof number === "number" && Number.isInteger(number) && number >= 0 && number <= max) return number;
  throw broken(`a bad "${name}"`);
}

/** A u64, which may be too large for a number: nanoseconds since 1970 are. */
export function bigInteger(value: unknown, name: string): bigint {
  if (typeof value === "bigint" && value >= 0n && value < 1n << 64n) return value;
  return BigInt(integer(value, name));
}

export function text(value: unknown, name: string, maxLength: number = Number.MAX_SAFE_INTEGER): string {
  if (typeof value === "string" && value.length <= maxLength) return value;
  throw broken(`a bad "${name}"`);
}

export function flag(value: unknown, name: string): boolean {
  if (typeof value === "boolean") return value;
  throw broken(`a bad "${name}"`);
}

/** Exactly `length` bytes, copied: they outlive the frame. */
export function bytes(value: unknown, name: string, length: number): Uint8Array {
  if (value instanceof Uint8Array && value.length === length) return new Uint8Array(value);
  throw broken(`a bad "${name}"`);
}

export function broken(what: string): AgentError {
  return new AgentError("AGENT_PROTOCOL", `The guest sent ${what}`);
}
