/** Bytes `start` to before `end` of a content. */
export interface ByteRange {
  start: number;
  end: number;
}

/**
 * What a Range header asks for of a content of `size` bytes (RFC 9110, 14). Undefined for all of it: also
 * for what is no range of bytes and for more than one range, which a server may leave alone.
 */
export function rangeOf(header: string | undefined, size: number): ByteRange | "unsatisfiable" | undefined {
  const match = /^bytes=\s*(\d*)-(\d*)\s*$/.exec(header ?? "");
  if (match === null) return undefined;
  const [, first = "", last = ""] = match;
  if (first === "" && last === "") return undefined;
  if (first === "") {
    const length = Math.min(Number(last), size);
    return length === 0 ? "unsatisfiable" : { start: size - length, end: size };
  }
  if (last !== "" && Number(last) < Number(first)) return undefined;
  if (Number(first) >= size) return "unsatisfiable";
  return { start: Number(first), end: last === "" ? size : Math.min(Number(last) + 1, size) };
}

/** Whether a list of ETags, as If-None-Match has it, names this one (weak comparison). */
export function namesEtag(header: string | undefined, etag: string): boolean {
  if (header === undefined) return false;
  return header.split(",").some((one) => {
    const named = one.trim();
    return named === "*" || named.replace(/^W\//, "") === etag;
  });
}
