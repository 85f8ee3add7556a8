import fc from "fast-check";

/** Bytes with some changed, cut out or put in. */
export function mutated(bytes: fc.Arbitrary<Uint8Array>): fc.Arbitrary<Uint8Array> {
  const edit = fc.record({ at: fc.nat(), drop: fc.nat(3), add: fc.uint8Array({ maxLength: 4 }) });
  return fc.tuple(bytes, fc.array(edit, { maxLength: 3 })).map(([original, edits]) =>
    edits.reduce<Uint8Array>((current, { at, drop, add }) => {
      const from = at % (current.length + 1);
      return Buffer.concat([current.subarray(0, from), add, current.subarray(from + drop)]);
    }, original),
  );
}
