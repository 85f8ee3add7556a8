import { afterAll, beforeAll, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { setImmediate } from "node:timers/promises";
import fc from "fast-check";
import { pack } from "msgpackr";
import { codeOf } from "../../errors/errors.ts";
import { encodeData, encodeMessage, FrameReader } from "../../guest-agent/protocol/codec.ts";
import { MARKER, messageTypes } from "../../guest-agent/protocol/constants.ts";
import { parseMessage } from "../../guest-agent/protocol/messages.ts";
import { freshIdentity } from "../support/agent-identity.ts";
import { AgentUnderTest } from "../support/agent-process.ts";

let agent: AgentUnderTest;

beforeAll(async () => {
  agent = await AgentUnderTest.start({ identity: true });
}, 120_000);

afterAll(() => agent[Symbol.asyncDispose]());

const ids = fc.integer({ min: 0, max: 5 });
const file = fc.constantFrom("f", "d/f", "d", "/proc/self/status", "/proc/nowhere/x", "");

/** Requests that do no harm to this machine: programs that end, files below the agent's directory. */
function requests(root: string): fc.Arbitrary<Uint8Array> {
  const path = file.map((name) => (name.startsWith("/") ? name : join(root, "fuzz", name)));
  const program = fc.constantFrom(["true"], ["cat"], ["yes"], ["sleep", "1000"], ["/nowhere"], [""]);
  const message = <T>(type: keyof typeof messageTypes, fields: fc.Arbitrary<T>) =>
    fc
      .tuple(ids, fields)
      .map(([id, value]) => encodeMessage(messageTypes[type], id, value as Record<string, unknown>));
  const stream = fc.integer({ min: 0, max: 3 });
  const amount = fc.oneof(fc.nat(1000), fc.constantFrom(65536, 262144, 0xffffffff));
  const nanoseconds = fc.oneof(fc.bigInt({ min: 0n, max: (1n << 64n) - 1n }), fc.constant(-1n));
  const identity = fc
    .record({
      realtimeNs: nanoseconds,
      vmId: fc.oneof(fc.constant("vm-1"), fc.string()),
      machineId: fc.oneof(fc.constant("0".repeat(32)), fc.string({ maxLength: 33 })),
      entropy: fc.uint8Array({ minLength: 30, maxLength: 130 }),
      hookTimeoutMs: fc.constantFrom(0, 1, 60_000, 60_001),
      sshKey: fc.record({ private: fc.string(), public: fc.string() }, { requiredKeys: ["public"] }),
    })
    .map((fields) => ({ ...freshIdentity(), ...fields }));
  return fc.oneof(
    message("PING", fc.constant({})),
    message("HELLO", fc.constant({})),
    message("QUIESCE", fc.constant({})),
    message("IDENTIFY", fc.record({ hostname: fc.string(), index: amount })),
    message("IDENTIFY", identity),
    message("RELEASE", fc.record({ realtimeNs: nanoseconds }, { requiredKeys: [] })),
    message("EXEC", fc.record({ argv: program, env: fc.array(fc.string()), stdin: fc.boolean() })),
    message("KILL", fc.record({ target: ids, signal: fc.constantFrom(0, 9, 15, 65) })),
    message("PUT", fc.record({ path, mode: fc.constantFrom(0o644, 0o10000) })),
    message("GET", fc.record({ path })),
    message("LIST", fc.record({ path: fc.constantFrom(root, "/nowhere", "/proc/self/fd") })),
    message("END", fc.record({ s: stream })),
    message("CANCEL", fc.record({ s: stream })),
    message("CREDIT", fc.record({ s: stream, n: amount })),
    fc
      .tuple(ids, fc.uint8Array({ minLength: 1, maxLength: 5000 }))
      .map(([id, data]) => encodeData(id, 0, data)),
    fc.constant(MARKER),
  );
}

/** Bytes with some changed, cut out or put in. */
function mutated(bytes: fc.Arbitrary<Uint8Array>): fc.Arbitrary<Uint8Array> {
  const edit = fc.record({ at: fc.nat(), drop: fc.nat(3), add: fc.uint8Array({ maxLength: 4 }) });
  return fc.tuple(bytes, fc.array(edit, { maxLength: 3 })).map(([original, edits]) =>
    edits.reduce<Uint8Array>((current, { at, drop, add }) => {
      const from = at % (current.length + 1);
      return Buffer.concat([current.subarray(0, from), add, current.subarray(from + drop)]);
    }, original),
  );
}

/** Bytes that the agent has read so far; endless once it is gone. */
function bytesRead(): number {
  try {
    return Number(/rchar: (\d+)/.exec(readFileSync(`/proc/${agent.pid}/io`, "utf8"))![1]);
  } catch (error) {
    if (codeOf(error) === "ENOENT" || codeOf(error) === "ESRCH") return Number.POSITIVE_INFINITY;
    throw error;
  }
}

/** A new host says `stream`, then starts a session of its own: the agent must answer that. */
async function survives(stream: Uint8Array): Promise<void> {
  const socket = await agent.socket();
  const closed = new Promise((resolve) => socket.once("close", resolve));
  const before = bytesRead();
  const answered = Promise.withResolvers<void>();
  const reader = new FrameReader();
  socket.on("data", (chunk: Uint8Array) =>
    reader.push(chunk, (payload) => {
      const message = parseMessage(payload); // whatever it says is well-formed
      if (message.type === "PONG" && message.id === 4_000_000) answered.resolve();
    }),
  );
  // An earlier stream may have left it at rest, where hardly anything is taken.
  socket.write(Buffer.concat([MARKER, encodeMessage(messageTypes.RELEASE, 4_000_001), stream]));
  // A marker beats whatever stands before it in the agent's buffer: so not before all of that was read.
  while (bytesRead() < before + stream.length && agent.alive && !socket.destroyed) await setImmediate();
  socket.write(Buffer.concat([MARKER, encodeMessage(messageTypes.PING, 4_000_000)]));
  await Promise.race([answered.promise, closed]);
  if (!agent.alive || socket.destroyed) {
    await agent.exited;
    // Chance may say SHUTDOWN: that, and nothing else, ends an agent, and cleanly.
    expect(agent.process.exitCode).toBe(0);
    await agent[Symbol.asyncDispose]();
    agent = await AgentUnderTest.start({ identity: true });
    return;
  }
  socket.destroy();
}

test("the whole agent survives requests in any order, cut and mangled, and stays in step", async () => {
  const good = requests(agent.directory);
  // Mangled EXECs could name any program; what is mangled has none.
  const harmless = good.filter((bytes) => bytes[5] !== messageTypes.EXEC && bytes[5] !== messageTypes.PUT);
  const streams = fc.array(
    fc.oneof({ weight: 3, arbitrary: good }, { weight: 2, arbitrary: mutated(harmless) }),
    {
      minLength: 1,
      maxLength: 25,
    },
  );
  const property = fc.asyncProperty(streams, (parts) => survives(Buffer.concat(parts)));
  await fc.assert(property, { seed: 1, numRuns: 400 });
}, 300_000);

test("the whole agent survives random bytes and random MessagePack", async () => {
  const anything = fc.anything({ withBigInt: false, withNullPrototype: false, maxDepth: 3 });
  const safe = fc.tuple(fc.nat(60), ids, anything).map((message) => {
    const payload = pack(message);
    const frame = Buffer.alloc(4 + payload.length);
    frame.writeUInt32BE(payload.length);
    frame.set(payload, 4);
    return frame;
  });
  const streams = fc.array(fc.oneof(fc.uint8Array({ maxLength: 300 }), safe), { maxLength: 20 });
  await fc.assert(
    fc.asyncProperty(streams, (parts) => survives(Buffer.concat(parts))),
    { seed: 2, numRuns: 300 },
  );
}, 300_000);
