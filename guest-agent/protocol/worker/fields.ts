import { Unpackr } from "msgpackr";
import { limits } from "../constants.ts";
import { AgentError } from "../errors.ts";
import { countValues } from "../messagepack-check.ts";
import { workerLimits } from "./constants.ts";
import { type HeaderList, headersProblem, isToken } from "./headers.ts";

/** A message as it came: its type's number, its id, its fields unchecked. */
export interface RawMessage {
  type: unknown;
  id: number;
  fields: Fields;
}

export type Fields = Readonly<Record<string, unknown>>;

const unpackr = new Unpackr({ useRecords: false, mapsAsObjects: true, int64AsType: "number" });

/**
 * Checks the fields of the messages of one side. Everything throws AGENT_PROTOCOL.
 *
 * @param side - whose messages they are, for the error's text: `The guest` or `The host`
 */
export function fieldReader(side: string) {
  const broken = (what: string) => new AgentError("AGENT_PROTOCOL", `${side} sent ${what}`);

  /** Decodes one payload; binary fields point into it. */
  function decode(payload: Uint8Array): RawMessage {
    // Five levels: message, fields, list, pair, text.
    if (countValues(payload, 5) !== 1) throw broken("a frame that is no MessagePack value");
    const value = unpacked(payload);
    if (!Array.isArray(value) || value.length < 2 || value.length > 3)
      throw broken("a frame that is no message");
    const [type, id, fields] = value;
    return { type, id: integer(id, "id", 0xffffffff), fields: value.length === 3 ? record(fields) : {} };
  }

  function unpacked(payload: Uint8Array): unknown {
    try {
      return unpackr.unpack(payload);
    } catch (error) {
      throw new AgentError("AGENT_PROTOCOL", `${side} sent a frame that cannot be decoded`, { cause: error });
    }
  }

  function record(value: unknown): Fields {
    if (
      typeof value !== "object" ||
      value === null ||
      Array.isArray(value) ||
      value instanceof Uint8Array ||
      value instanceof Date
    ) {
      throw broken("fields that are no map");
    }
    return value as Fields;
  }

  function integer(value: unknown, name: string, max: number = Number.MAX_SAFE_INTEGER): number {
    if (typeof value === "number" && Number.isInteger(value) && value >= 0 && value <= max) return value;
    throw broken(`a bad "${name}"`);
  }

  function text(value: unknown, name: string, max: number): string {
    // Characters are at most bytes, so nothing that fits is refused.
    if (typeof value === "string" && value.length <= max) return value;
    throw broken(`a bad "${name}"`);
  }

  function optional<T>(value: unknown, read: (value: unknown) => T): T | undefined {
    return value === undefined || value === null ? undefined : read(value);
  }

  function flag(value: unknown, name: string): boolean {
    if (value === undefined) return false;
    if (typeof value === "boolean") return value;
    throw broken(`a bad "${name}"`);
  }

  function oneOf<const T extends string>(value: unknown, name: string, all: readonly T[]): T {
    const found = all.find((known) => known === value);
    if (found === undefined) throw broken(`a bad "${name}"`);
    return found;
  }

  function headers(value: unknown): HeaderList {
    if (!Array.isArray(value) || !value.every(isPair)) throw broken('a bad "headers"');
    const problem = headersProblem(value);
    if (problem) throw broken(problem);
    return value;
  }

  function method(value: unknown): string {
    const name = text(value, "method", workerLimits.METHOD_MAX);
    if (!isToken(name)) throw broken('a bad "method"');
    return name;
  }

  /** An interim response, and the switch to another protocol, are nobody's to send. */
  function status(value: unknown): number {
    const number = integer(value, "status", 599);
    if (number < 200) throw broken('a bad "status"');
    return number;
  }

  function chunk(value: unknown): Uint8Array {
    // An empty chunk would cost no credit: an endless row of them could not be held back.
    if (value instanceof Uint8Array && value.length > 0 && value.length <= limits.CHUNK_MAX) return value;
    throw broken('a bad "d"');
  }

  function strings(value: unknown, name: string, max: number): Record<string, string> {
    const entries = Object.entries(record(value ?? {}));
    if (entries.length > max) throw broken(`a bad "${name}"`);
    return Object.fromEntries(entries.map(([key, item]) => [key, text(item, name, limits.FRAME_MAX)]));
  }

  return {
    broken,
    decode,
    record,
    integer,
    text,
    optional,
    flag,
    oneOf,
    headers,
    method,
    status,
    chunk,
    strings,
  };
}

function isPair(value: unknown): value is [string, string] {
  return (
    Array.isArray(value) && value.length === 2 && typeof value[0] === "string" && typeof value[1] === "string"
  );
}
