import { expect, test } from "bun:test";
import fc from "fast-check";
import { pack } from "msgpackr";
import { encodeData, encodeMessage, FrameReader } from "../../guest-agent/protocol/codec.ts";
import { limits, MARKER, messageTypes } from "../../guest-agent/protocol/constants.ts";
import { AgentError } from "../../guest-agent/protocol/errors.ts";
import { countValues } from "../../guest-agent/protocol/messagepack-check.ts";
import { parseEntries, parseMessage } from "../../guest-agent/protocol/messages.ts";
import { ScriptedGuest } from "../support/agent-peer.ts";

const seed = 7;

/** Runs `act`; whatever bad input makes of it, it may only be the one error. */
function onlyProtocolErrors(act: () => void): void {
  try {
    act();
  } catch (error) {
    if (!(error instanceof AgentError) || error.code !== "AGENT_PROTOCOL") throw error;
  }
}

const values = fc.anything({
  withBigInt: false,
  withNullPrototype: false,
  withTypedArray: true,
  maxDepth: 4,
});
const types = fc.constantFrom(...Object.values(messageTypes));
const fields = fc.dictionary(
  fc.constantFrom(
    "s",
    "d",
    "n",
    "pid",
    "code",
    "signal",
    "size",
    "mode",
    "mtimeMs",
    "message",
    "hooks",
    "hostname",
    "index",
    "vmId",
    "machineId",
    "bootId",
    "beforeNs",
    "realtimeNs",
    "draw",
    "__proto__",
    "constructor",
  ),
  fc.oneof(values, fc.nat(3), fc.uint8Array({ maxLength: 40 })),
);

test("parseMessage() gives a message or AGENT_PROTOCOL for any bytes", () => {
  const bytes = fc.oneof(
    fc.uint8Array({ maxLength: 400 }),
    values.map((value) => pack(value)),
    fc.tuple(types, fc.nat(5), fields).map((message) => pack(message)),
  );
  fc.assert(
    fc.property(bytes, (payload) => {
      onlyProtocolErrors(() => parseMessage(payload));
      onlyProtocolErrors(() => parseEntries(payload));
    }),
    { seed, numRuns: 20_000 },
  );
  expect(Object.hasOwn(Object.prototype, "polluted")).toBe(false);
}, 60_000);

test("countValues() agrees with the encoder and never reads past the end", () => {
  const plain = fc.letrec<{ value: unknown }>((tie) => ({
    value: fc.oneof(
      { maxDepth: 3 },
      fc.oneof(fc.integer(), fc.double(), fc.string(), fc.boolean(), fc.constant(null), fc.uint8Array()),
      fc.array(tie("value"), { maxLength: 20 }),
      fc.dictionary(fc.string(), tie("value"), { maxKeys: 20 }),
    ),
  })).value;
  fc.assert(
    fc.property(plain, fc.nat(), (value, cut) => {
      const bytes = pack(value);
      expect(countValues(bytes, 8)).toBe(1);
      if (bytes.length > 1)
        expect(countValues(bytes.subarray(0, 1 + (cut % (bytes.length - 1))), 8)).not.toBe(1);
    }),
    { seed, numRuns: 3000 },
  );
}, 60_000);

test("FrameReader finds the same frames however a stream is cut, and keeps nothing above the cap", () => {
  const frames = fc.oneof(
    fc.tuple(types, fc.nat(), fields).map(([type, id, value]) => encodeMessage(type, id, value)),
    fc.uint8Array({ minLength: 1, maxLength: 2000 }).map((data) => encodeData(1, 1, data)),
    fc.constant(MARKER),
  );
  fc.assert(
    fc.property(
      fc.array(frames, { maxLength: 12 }),
      fc.array(fc.nat(3000), { maxLength: 40 }),
      (parts, cuts) => {
        const stream = Buffer.concat([MARKER, ...parts]);
        const expected = parts.filter((part) => part !== MARKER).map((part) => Buffer.from(part.subarray(4)));
        const found: Uint8Array[] = [];
        const reader = new FrameReader();
        let at = 0;
        for (const cut of [...cuts, stream.length]) {
          reader.push(stream.subarray(at, at + cut), (payload) => found.push(Buffer.from(payload)));
          at += cut;
        }
        expect(found).toEqual(expected);
      },
    ),
    { seed, numRuns: 1500 },
  );
}, 60_000);

test("AgentClient ends a hostile guest's channel by AGENT_PROTOCOL, or outlives what it says", async () => {
  const guestTypes = fc.constantFrom(
    "STARTED",
    "EXIT",
    "DATA",
    "END",
    "CREDIT",
    "CANCEL",
    "OK",
    "ERROR",
    "FILE",
    "PONG",
  );
  const says = fc.tuple(
    guestTypes as fc.Arbitrary<keyof typeof messageTypes>,
    fc.integer({ min: 0, max: 3 }),
    fields,
  );
  await fc.assert(
    fc.asyncProperty(fc.array(says, { maxLength: 30 }), async (messages) => {
      await using guest = await ScriptedGuest.start();
      const calls = [
        guest.client.run(["x"], { input: "y" }),
        guest.client.putFile("/x", "y"),
        guest.client.list("/"),
        new Response(guest.client.getFile("/x")).bytes(),
      ];
      const outcomes = Promise.allSettled(calls);
      guest.greet();
      for (const [type, id, value] of messages) guest.send(type, id, value);
      guest.socket.write(new Uint8Array(4).fill(0x7f)); // and a frame above the cap
      expect((await guest.client.closed).code).toBe("AGENT_PROTOCOL");
      for (const outcome of await outcomes) {
        if (outcome.status === "rejected") expect(outcome.reason).toBeInstanceOf(AgentError);
      }
    }),
    { seed, numRuns: 300 },
  );
}, 120_000);

test("an announced length is believed only up to the cap", () => {
  fc.assert(
    fc.property(fc.integer({ min: limits.FRAME_MAX + 1, max: 0xfeffffff }), (size) => {
      const head = new Uint8Array(4);
      new DataView(head.buffer).setUint32(0, size);
      const reader = new FrameReader();
      expect(() => reader.push(Buffer.concat([MARKER, head]), () => undefined)).toThrow(AgentError);
    }),
    { seed, numRuns: 200 },
  );
});

test("a receipt is whole, or is none", () => {
  const good = {
    ...{ hostname: "h", index: 1, vmId: "vm-1", machineId: "0".repeat(32), bootId: "b" },
    ...{ beforeNs: 1n << 60n, realtimeNs: (1n << 64n) - 1n, entropyBytes: 64, reseeded: true },
    ...{ draw: new Uint8Array(32), vmGenId: false, tookNs: 2, kernelNs: 1 },
    hooks: [["name", 7, true, "evidence"]],
  };
  const parse = (value: unknown) => parseMessage(pack([messageTypes.IDENTIFIED, 1, value]));
  expect(parse(good)).toEqual({
    type: "IDENTIFIED",
    id: 1,
    ...good,
    sshKey: undefined,
    hooks: [{ name: "name", pid: 7, ok: true, text: "evidence" }],
  });
  for (const name of Object.keys(good)) {
    const { [name as keyof typeof good]: _left, ...rest } = good;
    expect(() => parse(rest)).toThrow(name);
    for (const wrong of [null, -1, 1.5, "x".repeat(257), new Uint8Array(31), [[]], -1n, {}])
      expect(() => parse({ ...good, [name]: wrong })).toThrow(name);
  }
  const hooks = [[], ["n", 1, true], ["n", 1, 1, ""], [1, 1, true, ""], ["n", 1, true, "t".repeat(257)], "x"];
  for (const hook of hooks) expect(() => parse({ ...good, hooks: [hook] })).toThrow("hooks");
  const many = Array.from({ length: limits.HOOKS_MAX + 1 }, () => ["n", 1, true, ""]);
  expect(() => parse({ ...good, hooks: many })).toThrow("hooks");
});
