import { FlurryError } from "../errors/errors.ts";

/** Deepest nesting of JSON from outside: what is stored is written again by a recursive writer. */
const MAX_DEPTH = 100;
/** Most values of one JSON text: each is parsed, checked and kept before anybody else has a turn. */
const MAX_VALUES = 500_000;

const QUOTE = 0x22;
const COMMA = 0x2c;
const BACKSLASH = 0x5c;

/**
 * Refuses JSON that is nested too deep or has too many values, before a parser sees it: a parser takes
 * seconds for 30 MB of brackets.
 *
 * @param what - names it in the error
 * @throws FlurryError BAD_ARGUMENT, BODY_TOO_LARGE
 */
export function checkShape(text: string, what: string): void {
  let depth = 0;
  let values = 1;
  for (let at = 0; at < text.length; at++) {
    switch (text.charCodeAt(at)) {
      case QUOTE:
        at = endOfString(text, at);
        break;
      case COMMA:
        values += 1;
        break;
      case 0x5b: // [
      case 0x7b: // {
        values += 1;
        depth += 1;
        break;
      case 0x5d: // ]
      case 0x7d: // }
        depth -= 1;
        break;
    }
    if (depth > MAX_DEPTH) {
      throw new FlurryError("BAD_ARGUMENT", `${what} is nested more than ${MAX_DEPTH} deep`);
    }
    if (values > MAX_VALUES) {
      throw new FlurryError("BODY_TOO_LARGE", `${what} has more than ${MAX_VALUES} values`, {
        hint: "send inputs as application/x-ndjson, one a line",
      });
    }
  }
}

/** Where the string that begins at `start` ends; the end of the text if it does not. */
function endOfString(text: string, start: number): number {
  for (let end = text.indexOf('"', start + 1); end >= 0; end = text.indexOf('"', end + 1)) {
    let backslashes = 0;
    while (text.charCodeAt(end - 1 - backslashes) === BACKSLASH) backslashes += 1;
    if (backslashes % 2 === 0) return end;
  }
  return text.length;
}
