import { FlurryError } from "../../errors/errors.ts";

/** Makes an opaque cursor out of where the next page begins. */
export function cursorOf(...at: readonly (number | string)[]): string {
  return Buffer.from(JSON.stringify(at)).toString("base64url");
}

/**
 * What `cursorOf` was given.
 *
 * @param kinds - type of each part
 * @throws FlurryError BAD_ARGUMENT for anything else
 */
export function readCursor<Kinds extends readonly ("number" | "string")[]>(
  cursor: string,
  ...kinds: Kinds
): { [K in keyof Kinds]: Kinds[K] extends "number" ? number : string } {
  let at: unknown;
  try {
    at = JSON.parse(Buffer.from(cursor, "base64url").toString());
  } catch (cause) {
    throw invalid(cause);
  }
  const fits = Array.isArray(at) && at.length === kinds.length && at.every((part, i) => isA(kinds[i]!, part));
  if (!fits) throw invalid();
  return at as never;
}

function isA(kind: "number" | "string", part: unknown): boolean {
  return kind === "number" ? Number.isSafeInteger(part) : typeof part === "string";
}

function invalid(cause?: unknown): FlurryError {
  return new FlurryError("BAD_ARGUMENT", "The cursor is not one that a page has given", {
    cause,
    hint: "take `next` of the page before as it is",
  });
}
