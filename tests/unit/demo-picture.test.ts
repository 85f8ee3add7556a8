import { describe, expect, test } from "bun:test";
import { decode, encode } from "fast-png";
import { Picture } from "../../runtime/cli/demo-picture.ts";

const SIZE = { width: 4, height: 2 };
const LEFT = { x: 0, y: 0, width: 2, height: 2 };
const RIGHT = { x: 2, y: 0, width: 2, height: 2 };

/** A PNG of the picture's size in one colour. */
function png(colour: readonly number[], size = SIZE, depth: 8 | 16 = 8): Uint8Array {
  const values = Array(size.width * size.height)
    .fill(colour)
    .flat();
  const data = depth === 8 ? Uint8Array.from(values) : Uint16Array.from(values);
  return encode({ ...size, data, channels: colour.length, depth });
}

describe("Picture", () => {
  test("takes of each tile's PNG the pixels of that tile", () => {
    const picture = new Picture(SIZE);
    picture.place(LEFT, png([1, 2, 3]));
    picture.place(RIGHT, png([4, 5, 6]));
    const { width, height, depth, channels, data } = decode(picture.toPng());
    expect({ width, height, depth, channels }).toEqual({ ...SIZE, depth: 8, channels: 3 });
    const row = [1, 2, 3, 1, 2, 3, 4, 5, 6, 4, 5, 6];
    expect([...data]).toEqual([...row, ...row]);
  });

  test("leaves an alpha channel out", () => {
    const [opaque, plain] = [new Picture(SIZE), new Picture(SIZE)];
    opaque.place({ ...SIZE, x: 0, y: 0 }, png([7, 8, 9, 128]));
    plain.place({ ...SIZE, x: 0, y: 0 }, png([7, 8, 9]));
    expect(opaque.differences(plain)).toBe(0);
  });

  test("counts the pixels that differ, by any channel", () => {
    const [one, other] = [new Picture(SIZE), new Picture(SIZE)];
    one.place(LEFT, png([1, 2, 3]));
    other.place(LEFT, png([1, 2, 4]));
    expect(one.differences(other)).toBe(4);
    expect(one.differences(one)).toBe(0);
  });

  test.each([
    ["another size", png([1, 2, 3], { width: 4, height: 3 })],
    ["grey", png([1])],
    ["16 bits a channel", png([1, 2, 3], SIZE, 16)],
  ])("refuses a tile of %s", (_name, data) => {
    expect(() => new Picture(SIZE).place(LEFT, data)).toThrow(/^A tile came as .* should be 4x2 in RGB$/);
  });
});
