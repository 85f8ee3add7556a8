import type { PageTable } from "../image/page-table.ts";

/** Where a page server has its images from. */
export interface ImageProvider {
  /** The hash of the image that was made for what was asked for under this key; both SHA-256 in hex. */
  find(key: string, signal: AbortSignal): Promise<string | undefined>;
  /**
   * Opens an image by the hash of its descriptor; undefined if it is not here. Opened for each connection
   * that asks, and disposed of when that ends or gives it up. The signal is the end of the connection,
   * which is not complete before this has come to an end.
   */
  open(hash: string, signal: AbortSignal): Promise<ServedImage | undefined>;
}

/** A memory image that is given to other hosts. */
export interface ServedImage extends AsyncDisposable {
  /** Encoded. */
  readonly descriptor: Buffer;
  /** The one whose hash is in the descriptor. */
  readonly table: PageTable;
  /** The pages that a child needs first, in order; undefined if that is not known. */
  workingSet(): Promise<Uint32Array | undefined>;
  /**
   * Copies adjacent pages, at once, to `at` in `target`.
   *
   * @returns false when some of them are not here
   */
  read(page: number, count: number, target: Buffer, at: number): boolean;
}

/**
 * When pages are compressed: `auto` while the connection takes less than there is to send, since then it
 * is the network that everybody waits for.
 */
export type Compression = "auto" | "always" | "never";
