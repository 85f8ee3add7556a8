import { constants, zstdCompressSync, zstdDecompressSync } from "node:zlib";
import { peerFailed } from "./frames.ts";

const MAGIC = 0xfd2fb528;
const LEVEL = { params: { [constants.ZSTD_c_compressionLevel]: 1 } };
/** log2 of the most bytes that a decoder must keep for a frame: that of the encoder's default level. */
const MAX_WINDOW_LOG = 21;
const BLOCK_HEAD_BYTES = 3;

/** The bytes as one Zstandard frame, or undefined when that saves less than an eighth. */
export function compress(bytes: Uint8Array): Buffer | undefined {
  const packed = zstdCompressSync(bytes, LEVEL);
  return packed.length <= bytes.length - bytes.length / 8 ? packed : undefined;
}

/**
 * @param most - bytes that they may have
 * @throws FlurryError PEER_FAILED when these are no whole frames, when they have more bytes, or need a
 * larger window. Not left to the decoder, as not every runtime's heeds a bound for the window, and none
 * refuses what is behind a frame.
 */
export function decompress(frames: Buffer, most: number): Buffer {
  // One frame, behind which Deno's encoder puts an empty one at times.
  for (let at = 0; at < frames.length; ) at += frameBytes(frames.subarray(at), most);
  let cause: unknown;
  try {
    const bytes = zstdDecompressSync(frames, { maxOutputLength: Math.max(most, 1) });
    // Which is not kept to the byte either.
    if (bytes.length <= most) return bytes;
  } catch (error) {
    cause = error;
  }
  throw peerFailed(`Cannot decompress ${frames.length} bytes to at most ${most}`, cause);
}

/** Walks the blocks of the first frame (RFC 8878, section 3.1.1). Returns how many bytes it has. */
function frameBytes(frame: Buffer, most: number): number {
  if (frame.length < 6 || frame.readUInt32LE(0) !== MAGIC) throw peerFailed("Compressed pages have no magic");
  const descriptor = frame[4]!;
  const single = (descriptor & 0x20) !== 0;
  const contentSizeBytes = [single ? 1 : 0, 2, 4, 8][descriptor >> 6]!;
  const dictionaryBytes = [0, 1, 2, 4][descriptor & 3]!;
  let at = 5 + (single ? 0 : 1) + dictionaryBytes;
  if (at + contentSizeBytes > frame.length) throw peerFailed("Compressed pages end in their head");
  // The window of a single segment is its content.
  const tooWide = single
    ? contentSize(frame, at, contentSizeBytes) > most
    : 10 + (frame[5]! >> 3) > MAX_WINDOW_LOG;
  if (tooWide) throw peerFailed("Compressed pages need too large a window");
  at += contentSizeBytes;
  for (let last = false; !last; ) {
    if (at + BLOCK_HEAD_BYTES > frame.length) throw peerFailed("Compressed pages end in a block");
    const head = frame.readUIntLE(at, BLOCK_HEAD_BYTES);
    last = (head & 1) === 1;
    const rle = ((head >> 1) & 3) === 1;
    at += BLOCK_HEAD_BYTES + (rle ? 1 : head >> 3);
  }
  at += (descriptor & 4) !== 0 ? 4 : 0;
  if (at > frame.length) throw peerFailed(`Compressed pages end at ${frame.length} of ${at} bytes`);
  return at;
}

function contentSize(frame: Buffer, at: number, bytes: number): number {
  if (bytes === 8) return Number(frame.readBigUInt64LE(at));
  return frame.readUIntLE(at, bytes) + (bytes === 2 ? 256 : 0);
}
