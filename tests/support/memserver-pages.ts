import { PAGE_BYTES } from "../../memserver/stream/format.ts";

/**
 * The bytes of a page that tests write: told by its number and a seed, without a pattern, and never a
 * zero page.
 */
export function pageOf(page: number, seed = 0): Buffer {
  const words = new Uint32Array(PAGE_BYTES / 4);
  // xorshift32, which never comes to zero from another state.
  let state = (Math.imul(page + 1, 0x9e3779b1) ^ Math.imul(seed + 1, 0x85ebca6b)) | 1;
  for (let at = 0; at < words.length; at++) {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    words[at] = state;
  }
  return Buffer.from(words.buffer);
}

/** Adjacent pages as `pageOf` has them. */
export function pagesOf(page: number, count: number, seed = 0): Buffer {
  return Buffer.concat(Array.from({ length: count }, (_, at) => pageOf(page + at, seed)));
}
