import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { codeOf } from "../../errors/errors.ts";
import { type Descriptor, decodeDescriptor, encodeDescriptor } from "../../memserver/descriptor.ts";
import { deviceSections, incomingStream } from "../../memserver/device-stream.ts";

const SEED = 20090401;
const HASH = "0123456789abcdef".repeat(4);

const text = fc.string({ minLength: 1, maxLength: 40 });
const descriptors: fc.Arbitrary<Descriptor> = fc.record({
  format: fc.constant("flurry-descriptor" as const),
  version: fc.constant(3 as const),
  frozenAt: fc.integer({ min: 0, max: 4e12 }),
  fingerprint: fc.record({
    qemu: text,
    machine: text,
    cpu: text,
    accel: fc.constantFrom("kvm" as const, "tcg" as const),
    cpus: fc.integer({ min: 1, max: 1024 }),
    memBytes: fc.integer({ min: 1, max: Number.MAX_SAFE_INTEGER }),
    devices: fc.constant(HASH),
    image: text,
    hostCpu: fc.string(),
  }),
  deviceState: fc.uint8Array({ minLength: 1, maxLength: 500 }).map((bytes) => new Uint8Array(bytes)),
  hooks: fc.integer({ min: 0, max: 64 }),
  ram: fc.record(
    {
      block: text,
      bytes: fc.integer({ min: 1, max: Number.MAX_SAFE_INTEGER }),
      hash: fc.constant(HASH),
    },
    { requiredKeys: ["block", "bytes"] },
  ),
  lineage: fc.record({
    generation: fc.integer({ min: 0, max: 1000 }),
    parent: fc.constantFrom(null, HASH),
  }),
});

const sample = fc.sample(descriptors, { seed: SEED, numRuns: 1 })[0]!;

/** The only way in which bytes may be refused. */
function refusesOrReads(bytes: Uint8Array): boolean {
  try {
    const read = decodeDescriptor(bytes);
    return encodeDescriptor(read).length > 0;
  } catch (error) {
    return codeOf(error) === "DESCRIPTOR_INVALID";
  }
}

describe("decodeDescriptor()", () => {
  test("reads every descriptor that can be written, and writes it again byte for byte", () => {
    fc.assert(
      fc.property(descriptors, (descriptor) => {
        const bytes = encodeDescriptor(descriptor);
        const read = decodeDescriptor(bytes);
        expect(read).toEqual({ ...descriptor, deviceState: expect.anything() });
        expect(Buffer.from(read.deviceState).equals(descriptor.deviceState)).toBe(true);
        expect(encodeDescriptor(read).equals(bytes)).toBe(true);
      }),
      { seed: SEED, numRuns: 500 },
    );
  });

  test("reads or refuses any bytes, and is none the worse for it", () => {
    fc.assert(fc.property(fc.uint8Array({ maxLength: 300 }), refusesOrReads), {
      seed: SEED,
      numRuns: 20_000,
    });
    expect(decodeDescriptor(encodeDescriptor(sample)).lineage).toEqual(sample.lineage);
  });

  test("reads or refuses what is nearly CBOR: tags, lengths and ends in any order", () => {
    // Heads of all major types, tags that decoders give a meaning (records, sets, references, dates).
    const heads = [0x00, 0x20, 0x41, 0x5f, 0x61, 0x7f, 0x81, 0x9f, 0xa1, 0xbf, 0xc0, 0xc1, 0xc2, 0xd8, 0xd9];
    const more = [0xda, 0xf6, 0xf9, 0xfb, 0xff, 0x19, 0x1c, 0x1d, 0x33, 0x69, 0x6a, 0xdf, 0xff, 0x01, 0x02];
    const byte = fc.constantFrom(...heads, ...more);
    fc.assert(
      fc.property(fc.array(byte, { maxLength: 40 }), (bytes) => refusesOrReads(Uint8Array.from(bytes))),
      { seed: SEED, numRuns: 50_000 },
    );
    expect(encodeDescriptor(decodeDescriptor(encodeDescriptor(sample)))).toEqual(encodeDescriptor(sample));
  });

  test("reads or refuses a descriptor with some bytes changed, and is none the worse for it", () => {
    const good = encodeDescriptor(sample);
    const changes = fc.array(fc.tuple(fc.nat(good.length - 1), fc.nat(255)), { minLength: 1, maxLength: 4 });
    fc.assert(
      fc.property(changes, fc.nat(good.length), (edits, cut) => {
        const bytes = Buffer.from(good);
        for (const [at, value] of edits) bytes[at] = value;
        return refusesOrReads(bytes) && refusesOrReads(bytes.subarray(0, cut));
      }),
      { seed: SEED, numRuns: 10_000 },
    );
    expect(encodeDescriptor(decodeDescriptor(good)).equals(good)).toBe(true);
  });
});

describe("deviceSections()", () => {
  test("takes or refuses any bytes, and what it takes it gives back unchanged", () => {
    const header = Buffer.from("5145564d0000000304", "hex");
    const streams = fc.tuple(fc.boolean(), fc.uint8Array({ maxLength: 200 }));
    fc.assert(
      fc.property(streams, ([withHeader, rest]) => {
        const bytes = Buffer.concat([withHeader ? header : Buffer.alloc(0), rest]);
        try {
          const sections = deviceSections(bytes);
          const stream = incomingStream("m", sections);
          return stream.includes(bytes.subarray(8));
        } catch (error) {
          return codeOf(error) === "DESCRIPTOR_INVALID";
        }
      }),
      { seed: SEED, numRuns: 10_000 },
    );
  });
});
