import { decode, encode } from "fast-png";
import { FlurryError } from "../../errors/errors.ts";
import type { Size, Tile } from "./demo-tiles.ts";

const CHANNELS = 3;

/** A picture that is put together from tiles; 8 bits a channel, RGB. */
export class Picture {
  readonly size: Size;
  readonly #data: Uint8Array;

  constructor(size: Size) {
    this.size = size;
    this.#data = new Uint8Array(size.width * size.height * CHANNELS);
  }

  /**
   * Takes a tile's pixels out of a rendered PNG. POV-Ray writes a picture of the full size of which
   * only the tile is drawn.
   *
   * @throws FlurryError TASK_FAILED if the PNG is not such a picture
   */
  place(tile: Tile, png: Uint8Array): void {
    const { width, height } = this.size;
    const source = decode(png);
    if (
      source.width !== width ||
      source.height !== height ||
      source.depth !== 8 ||
      source.channels < CHANNELS
    ) {
      const got = `${source.width}x${source.height}, ${source.channels} channels of ${source.depth} bits`;
      throw new FlurryError("TASK_FAILED", `A tile came as ${got}, and should be ${width}x${height} in RGB`);
    }
    for (let y = tile.y; y < tile.y + tile.height; y++) {
      for (let x = tile.x; x < tile.x + tile.width; x++) {
        const from = (y * width + x) * source.channels;
        const to = (y * width + x) * CHANNELS;
        for (let channel = 0; channel < CHANNELS; channel++) {
          this.#data[to + channel] = source.data[from + channel] ?? 0;
        }
      }
    }
  }

  /** Number of pixels that differ from another picture of the same size. */
  differences(other: Picture): number {
    let count = 0;
    for (let at = 0; at < this.#data.length; at += CHANNELS) {
      const same = [0, 1, 2].every((channel) => this.#data[at + channel] === other.#data[at + channel]);
      if (!same) count += 1;
    }
    return count;
  }

  toPng(): Uint8Array {
    const { width, height } = this.size;
    return encode({ width, height, data: this.#data, channels: CHANNELS, depth: 8 });
  }
}
