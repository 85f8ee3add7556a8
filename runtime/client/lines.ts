import { FlurryError } from "../../errors/errors.ts";

/** Most characters of one line. A result with 64 KiB of output and a value of 1 MiB is far below it, whatever it escapes. */
const MAX_LINE_CHARS = 4 * 1024 * 1024;

/**
 * Cuts bytes of UTF-8 into lines. What stands after the last line end is not given out: whoever sends
 * lines ends each one, so it is cut off.
 *
 * @param ends - "lf" for NDJSON; "any" for event streams, where CR, LF and CR LF end a line
 * @throws FlurryError GATEWAY_FAILED for a line that does not end
 */
export async function* splitLines(
  source: AsyncIterable<Uint8Array>,
  ends: "lf" | "any",
): AsyncGenerator<string, void, undefined> {
  const pattern = ends === "lf" ? /\n/g : /\r\n|\r|\n/g;
  const decoder = new TextDecoder();
  let pieces: string[] = [];
  let held = 0;
  /** The last chunk ended in CR: an LF that begins the next one belongs to it. */
  let afterCr = false;
  for await (const chunk of source) {
    let text = decoder.decode(chunk, { stream: true });
    if (afterCr && text !== "") {
      if (text.startsWith("\n")) text = text.slice(1);
      afterCr = false;
    }
    let from = 0;
    for (const match of text.matchAll(pattern)) {
      pieces.push(text.slice(from, match.index));
      from = match.index + match[0].length;
      yield pieces.join("");
      pieces = [];
      held = 0;
    }
    if (ends === "any" && text.endsWith("\r")) afterCr = true;
    pieces.push(text.slice(from));
    held += text.length - from;
    if (held > MAX_LINE_CHARS) {
      throw new FlurryError(
        "GATEWAY_FAILED",
        `A line of the answer has more than ${MAX_LINE_CHARS} characters`,
      );
    }
  }
}
