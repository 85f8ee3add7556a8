import { describe, expect, test } from "bun:test";
import { deviceSections, incomingStream } from "../../memserver/device-stream.ts";
import { rejection } from "../support/agent-peer.ts";

const HEADER = Buffer.from("5145564d00000003", "hex");
const SECTIONS = Buffer.from("0400000001017400000000000000010a7e0000000100", "hex");
const saved = Buffer.concat([HEADER, SECTIONS]);

describe("deviceSections()", () => {
  test("takes the header off", () => {
    expect(Buffer.from(deviceSections(saved)).equals(SECTIONS)).toBe(true);
  });

  test("gives bytes of its own", () => {
    const input = Buffer.from(saved);
    const sections = deviceSections(input);
    input.fill(0xff);
    expect(Buffer.from(sections).equals(SECTIONS)).toBe(true);
  });

  test.each<[string, Buffer, RegExp]>([
    ["nothing", Buffer.alloc(0), /only 0 bytes/],
    ["a header alone", HEADER, /only 8 bytes/],
    ["another magic", Buffer.concat([Buffer.from("QEVN"), saved.subarray(4)]), /magic is "QEVN"/],
    ["another version", Buffer.from(saved).fill(4, 7, 8), /version is 4/],
    ["another first section", Buffer.from(saved).fill(1, 8, 9), /section type is 1 at offset 8/],
    ["a cut end", saved.subarray(0, -1), /does not end with EOF, but with 1/],
  ])("refuses %s", async (_name, bytes, message) => {
    const error = await rejection((async () => deviceSections(bytes))());
    expect(error.code).toBe("DESCRIPTOR_INVALID");
    expect(error.message).toMatch(message);
  });
});

describe("incomingStream()", () => {
  test("puts a configuration before the sections and an empty description behind them", () => {
    const name = Buffer.from("pc-q35-10.0");
    const expected = Buffer.concat([
      HEADER,
      Buffer.from("070000000b", "hex"),
      name,
      SECTIONS,
      Buffer.from("06000000027b7d", "hex"),
    ]);
    expect(incomingStream("pc-q35-10.0", deviceSections(saved)).equals(expected)).toBe(true);
  });
});
