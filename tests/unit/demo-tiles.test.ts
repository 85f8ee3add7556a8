import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { divide } from "../../runtime/cli/demo-tiles.ts";

describe("divide()", () => {
  test("puts every pixel into exactly one tile", () => {
    const sizes = fc.record({
      width: fc.integer({ min: 1, max: 60 }),
      height: fc.integer({ min: 1, max: 60 }),
    });
    fc.assert(
      fc.property(sizes, fc.integer({ min: 1, max: 40 }), (size, count) => {
        fc.pre(hasTiles(size, count));
        const tiles = divide(size, count);
        expect(tiles.length).toBe(count);
        const seen = new Uint8Array(size.width * size.height);
        for (const tile of tiles) {
          expect(tile.width).toBeGreaterThan(0);
          expect(tile.height).toBeGreaterThan(0);
          for (let y = tile.y; y < tile.y + tile.height; y++) {
            for (let x = tile.x; x < tile.x + tile.width; x++) {
              const at = y * size.width + x;
              seen[at] = (seen[at] ?? 0) + 1;
            }
          }
        }
        expect(seen.every((times) => times === 1)).toBe(true);
      }),
      { seed: 20_260, numRuns: 300 },
    );
  });

  test("takes the squarest tiles", () => {
    const tiles = divide({ width: 320, height: 240 }, 8);
    expect(tiles.map(({ x, y }) => [x, y])).toEqual([
      ...[0, 80, 160, 240].map((x) => [x, 0]),
      ...[0, 80, 160, 240].map((x) => [x, 120]),
    ]);
    expect(divide({ width: 10, height: 1000 }, 5).every(({ width }) => width === 10)).toBe(true);
  });

  test("refuses more tiles than there is room for", () => {
    expect(() => divide({ width: 2, height: 2 }, 5)).toThrow("A picture of 2x2 has no 5 tiles");
    // Enough pixels, but no rectangle of seven tiles fits.
    expect(() => divide({ width: 4, height: 4 }, 7)).toThrow("A picture of 4x4 has no 7 tiles");
  });
});

/** Whether some number of columns divides the count, with a pixel for each column and row. */
function hasTiles(size: { width: number; height: number }, count: number): boolean {
  return Array.from({ length: count }, (_value, index) => index + 1).some(
    (columns) => count % columns === 0 && columns <= size.width && count / columns <= size.height,
  );
}
