/**
 * Generators that keep their state in static variables, know nothing of forks, and have no call to seed
 * them: they are found by what their memory looks like.
 */

/** SQLite, src/random.c: 16 words of ChaCha20, 64 bytes of its output, and how many of these are left. */
const SQLITE = { words: 16, counter: 12, nonce: 13, left: 128, outputBytes: 64, bytes: 132 };
const CHACHA_CONSTANTS = Buffer.from("expand 32-byte k");

/**
 * WebKit, WTF/wtf/CryptographicallyRandomNumber.cpp: RC4's two indexes and its 256 values, all different,
 * and behind them the number of bytes until it is seeded anew.
 */
const RC4 = { values: 256, left: 257, leftMax: 1_600_000, bytes: 261, alignment: 4 };

/** @param statics - memory of static variables */
export function findSqlite(statics: readonly Uint8Array[]): Uint32Array {
  for (const { buffer, byteOffset, length } of statics) {
    const bytes = Buffer.from(buffer as ArrayBuffer, byteOffset, length);
    for (let at = bytes.indexOf(CHACHA_CONSTANTS); at >= 0; at = bytes.indexOf(CHACHA_CONSTANTS, at + 1)) {
      if (at % 4 !== 0 || at + SQLITE.bytes > length) continue;
      const words = new Uint32Array(buffer as ArrayBuffer, byteOffset + at, SQLITE.words);
      const left = bytes.readUInt32LE(at + SQLITE.left) & 0xff;
      // Others' ChaCha20 has a counter of 64 bits, whose upper half is 0.
      if (words[SQLITE.nonce] !== 0 && left <= SQLITE.outputBytes) return words.subarray(0, 1);
    }
  }
  return new Uint32Array(0);
}

/** @param statics - memory of static variables */
export function findWebKit(statics: readonly Uint8Array[]): Int32Array {
  for (const bytes of statics) {
    const words = new Int32Array(bytes.buffer, bytes.byteOffset, bytes.length >> 2);
    const index = indexOfRc4(bytes, words);
    if (index >= 0) return words.subarray(index, index + 1);
  }
  return new Int32Array(0);
}

/** Index of the word that counts. */
function indexOfRc4(bytes: Uint8Array, words: Int32Array): number {
  for (let index = Math.ceil(RC4.left / RC4.alignment); index < words.length; index++) {
    const left = words[index]!;
    if (left > 0 && left <= RC4.leftMax && isPermutation(bytes, index * RC4.alignment - RC4.left))
      return index;
  }
  return -1;
}

function isPermutation(bytes: Uint8Array, start: number): boolean {
  // Nearly all that are none are found out at once.
  if (bytes[start] === bytes[start + 1]) return false;
  const seen = new Uint8Array(RC4.values);
  for (let at = start; at < start + RC4.values; at++) {
    if (seen[bytes[at]!]) return false;
    seen[bytes[at]!] = 1;
  }
  return true;
}
