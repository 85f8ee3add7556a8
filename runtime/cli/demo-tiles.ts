/** A rectangle of a picture in pixels; `x` and `y` from the upper left corner, 0-based. */
export interface Tile {
  x: number;
  y: number;
  width: number;
  height: number;
}

/** Size of a picture in pixels. */
export interface Size {
  width: number;
  height: number;
}

/**
 * Divides a picture into `count` tiles, as square as the count allows: rows times columns is exactly
 * `count`, and every pixel lies in one tile.
 */
export function divide(size: Size, count: number): Tile[] {
  const columns = bestColumns(size, count);
  const rows = count / columns;
  const tiles: Tile[] = [];
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      const x = edge(size.width, column, columns);
      const y = edge(size.height, row, rows);
      const width = edge(size.width, column + 1, columns) - x;
      tiles.push({ x, y, width, height: edge(size.height, row + 1, rows) - y });
    }
  }
  return tiles;
}

/** The divisor of `count` whose tiles are nearest to squares and have at least one pixel. */
function bestColumns(size: Size, count: number): number {
  let best: { columns: number; skew: number } | undefined;
  for (let columns = 1; columns <= count; columns++) {
    const rows = count / columns;
    if (!Number.isInteger(rows) || columns > size.width || rows > size.height) continue;
    const skew = Math.abs(Math.log((size.width / columns) * (rows / size.height)));
    if (!best || skew < best.skew) best = { columns, skew };
  }
  if (!best) throw new RangeError(`A picture of ${size.width}x${size.height} has no ${count} tiles`);
  return best.columns;
}

function edge(length: number, index: number, parts: number): number {
  return Math.round((length * index) / parts);
}
