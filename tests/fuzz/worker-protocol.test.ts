import { expect, test } from "bun:test";
import fc from "fast-check";
import { pack } from "msgpackr";
import { encodeData, encodeMessage } from "../../guest-agent/protocol/codec.ts";
import { limits, MARKER } from "../../guest-agent/protocol/constants.ts";
import { AgentError } from "../../guest-agent/protocol/errors.ts";
import {
  OUTBOUND_ID_MIN,
  type WorkerType,
  workerTypes,
} from "../../guest-agent/protocol/worker/constants.ts";
import { parseGuestMessage } from "../../guest-agent/protocol/worker/guest-messages.ts";
import { BadMessage, parseHostMessage } from "../../guest-agent/protocol/worker/host-messages.ts";
import { type OutboundHandler, WorkerError, workerLimits } from "../../guest-agent/protocol/worker/mod.ts";
import { mutated } from "../support/worker-mutations.ts";
import { ScriptedWorkerHost } from "../support/worker-peer.ts";

const values = fc.anything({
  withBigInt: false,
  withNullPrototype: false,
  withTypedArray: true,
  maxDepth: 4,
});
const types = fc.constantFrom(...Object.values(workerTypes));
const pairs = fc.array(
  fc.tuple(fc.constantFrom("a", "set-cookie", "B", ""), fc.string({ unit: "binary", maxLength: 8 })),
  { maxLength: 4 },
);
const names = [
  "s",
  "d",
  "n",
  "status",
  "headers",
  "body",
  "code",
  "message",
  "stack",
  "kind",
  "level",
  "stream",
  "text",
  "time",
  "requestId",
  "dropped",
  "ms",
  "handlers",
  "shape",
  "waited",
  "vm",
  "env",
  "method",
  "url",
  "protocol",
  "redirect",
  "redirected",
  "statusText",
  "__proto__",
  "constructor",
] as const;
const fields = fc.dictionary(
  fc.constantFrom(...names),
  fc.oneof(
    values,
    fc.nat(600),
    fc.uint8Array({ minLength: 1, maxLength: 40 }),
    pairs,
    fc.constantFrom("info", "stdout", "exit", "follow", "http://o.test/", "GET"),
  ),
);

/** Of the host, and of the guest's own requests. */
const ids = fc.oneof(fc.nat(5), fc.integer({ min: OUTBOUND_ID_MIN, max: OUTBOUND_ID_MIN + 3 }));

test("the parsers of both ends give a message or their one error for any bytes", () => {
  const bytes = fc.oneof(
    fc.uint8Array({ maxLength: 400 }),
    values.map((value) => pack(value)),
    fc.tuple(types, ids, fields).map((message) => pack(message)),
    mutated(fc.tuple(types, ids, fields).map((message) => pack(message))),
  );
  fc.assert(
    fc.property(bytes, (payload) => {
      try {
        parseGuestMessage(payload);
      } catch (error) {
        if (!(error instanceof AgentError) || error.code !== "AGENT_PROTOCOL") throw error;
      }
      try {
        parseHostMessage(payload);
      } catch (error) {
        if (!(error instanceof BadMessage)) throw error;
      }
    }),
    { seed: 21, numRuns: 20_000 },
  );
  expect(Object.hasOwn(Object.prototype, "polluted")).toBe(false);
}, 60_000);

const guestTypes: readonly WorkerType[] = [
  "HELLO",
  "PONG",
  "QUIESCED",
  "LOADED",
  "SET_UP",
  "READY",
  "RESPONSE",
  "DONE",
  "DATA",
  "END",
  "CREDIT",
  "CANCEL",
  "ABORT",
  "ERROR",
  "LOG",
  "FAULT",
  "OUTBOUND",
];

const outbound = { method: "POST", url: "http://o.test/", headers: [["a", "b"]], redirect: "follow" };

/** Messages that a good guest could send, in any order. */
const plausible: fc.Arbitrary<Uint8Array> = fc
  .tuple(
    fc.constantFrom(
      ["RESPONSE", { status: 200, headers: [["a", "b"]], body: true }],
      ["RESPONSE", { status: 404, headers: [] }],
      ["DONE", { waited: 1, failed: 0, unsettled: 0 }],
      ["END", { s: 1 }],
      ["ABORT", { s: 1, message: "m" }],
      ["CANCEL", { s: 0 }],
      ["CREDIT", { s: 0, n: 10 }],
      ["ERROR", { code: "WORKER_FAILED", message: "m" }],
      ["LOG", { stream: "stdout", level: "info", text: "x", time: 1 }],
      ["FAULT", { kind: "exit", message: "x", exitCode: 1, time: 1 }],
      ["PONG", {}],
      ["DATA", { s: 1, d: new Uint8Array([123, 125]) }],
      ["CANCEL", { s: 1 }],
      ["OUTBOUND", outbound],
      ["OUTBOUND", { ...outbound, body: true }],
    ) as fc.Arbitrary<[WorkerType, Record<string, unknown>]>,
    ids,
  )
  .map(([[type, value], id]) => encodeMessage(workerTypes[type], id, value));

const wild = fc
  .tuple(fc.constantFrom(...guestTypes), ids, fields)
  .map(([type, id, value]) => encodeMessage(workerTypes[type], id, value));

/**
 * The client asks for all there is while the guest says `stream`, and at the end a frame above the cap: that ends
 * a channel wherever it stands, being longer than what half a frame could still take in.
 */
async function survives(stream: readonly Uint8Array[], cuts: readonly number[]): Promise<void> {
  const signals: AbortSignal[] = [];
  const answering: OutboundHandler = async ({ url, body }, signal) => {
    signals.push(signal);
    if (signals.length % 3 === 0) throw new Error("no");
    return { status: 200, headers: [], url, redirected: false, body: body ?? new Uint8Array(300_000) };
  };
  await using guest = await ScriptedWorkerHost.start({ outbound: answering });
  const { client } = guest;
  const read = async () => {
    const response = await client.fetch({ method: "POST", url: "http://w/", body: new Uint8Array(300_000) });
    await new Response(response.body).bytes();
    await response.done;
  };
  const calls = [
    read(),
    client.task({ a: 1 }),
    client.fetch({ method: "GET", url: "http://w/" }).then((response) => response.body.cancel()),
    client.ping(),
    client.load({ name: "x" }),
  ];
  const outcomes = Promise.allSettled(calls);
  const bytes = Buffer.concat([MARKER, ...stream, new Uint8Array(limits.FRAME_MAX + 8).fill(0x7f)]);
  let at = 0;
  for (const cut of cuts) {
    guest.socket.write(bytes.subarray(at, at + cut));
    at += cut;
  }
  guest.socket.write(bytes.subarray(at));
  expect(await client.closed).toMatchObject({ code: "AGENT_PROTOCOL" });
  for (const outcome of await outcomes) {
    if (outcome.status === "rejected") expect(outcome.reason).toBeInstanceOf(WorkerError);
  }
  expect(client.pending).toBe(0);
  expect(signals.every((signal) => signal.aborted)).toBe(true);
}

test("WorkerClient ends a hostile guest's channel by AGENT_PROTOCOL, or outlives what it says", async () => {
  const says = fc.oneof(
    { weight: 4, arbitrary: plausible },
    { weight: 1, arbitrary: wild },
    { weight: 1, arbitrary: mutated(plausible) },
    { weight: 1, arbitrary: fc.uint8Array({ maxLength: 100 }) },
  );
  const cuts = fc.array(fc.nat(200), { maxLength: 10 });
  await fc.assert(fc.asyncProperty(fc.array(says, { maxLength: 25 }), cuts, survives), {
    seed: 22,
    numRuns: 400,
  });
}, 120_000);

test("a flood of good messages costs the host no more than its windows", async () => {
  for (const flood of [
    encodeMessage(workerTypes.PONG, 77),
    encodeMessage(workerTypes.CREDIT, 77, { s: 0, n: 1 }),
    encodeMessage(workerTypes.RESPONSE, 77, { status: 200, headers: [], body: true }),
    encodeData(77, 1, new Uint8Array(1000)),
    encodeData(OUTBOUND_ID_MIN, 1, new Uint8Array(1000)),
    MARKER,
  ]) {
    await using guest = await ScriptedWorkerHost.start();
    const before = process.memoryUsage.rss();
    const block = Buffer.concat(Array.from({ length: 200 }, () => flood));
    guest.greet();
    for (let i = 0; i < 200; i++) {
      if (!guest.socket.write(block)) await new Promise((resolve) => guest.socket.once("drain", resolve));
    }
    const ping = guest.client.ping();
    const { id } = await guest.expect("PING");
    guest.send("PONG", id);
    await ping;
    expect(process.memoryUsage.rss() - before).toBeLessThan(96 << 20);
  }
}, 60_000);

test("bytes of a body in pieces of one cost no more than the bytes", async () => {
  await using guest = await ScriptedWorkerHost.start();
  guest.greet();
  const response = guest.client.fetch({ method: "GET", url: "http://w/" });
  const { id } = await guest.expect("REQUEST");
  guest.send("RESPONSE", id, { status: 200, headers: [], body: true });
  await response;
  const before = process.memoryUsage();
  const ones = Buffer.concat(Array.from({ length: 1000 }, () => encodeData(id, 1, new Uint8Array(1))));
  for (let i = 0; i < limits.WINDOW_TO_HOST / 1000 - 1; i++) {
    if (!guest.socket.write(ones)) await new Promise((resolve) => guest.socket.once("drain", resolve));
  }
  const after = process.memoryUsage();
  expect(after.arrayBuffers - before.arrayBuffers).toBeLessThan(16 << 20);
  expect(workerLimits.REQUESTS_MAX).toBe(128);
}, 60_000);
