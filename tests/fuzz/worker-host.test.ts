import { afterAll, beforeAll, expect, test } from "bun:test";
import { once } from "node:events";
import fc from "fast-check";
import { pack } from "msgpackr";
import { encodeData, encodeMessage, FrameReader } from "../../guest-agent/protocol/codec.ts";
import { MARKER } from "../../guest-agent/protocol/constants.ts";
import { type WorkerType, workerTypes } from "../../guest-agent/protocol/worker/constants.ts";
import { type GuestMessage, parseGuestMessage } from "../../guest-agent/protocol/worker/guest-messages.ts";
import { mutated } from "../support/worker-mutations.ts";
import { textOf, WorkerHostUnderTest } from "../support/worker-process.ts";

const source = `
export default {
  async fetch(request, env, ctx) {
    const { pathname } = new URL(request.url);
    if (pathname === "/throw") throw new Error("x");
    if (pathname === "/give") return new Response(new Uint8Array(500_000));
    if (pathname === "/out") return new Response(await (await fetch("http://o.test/", { method: "POST", body: new Uint8Array(300_000) })).text());
    if (pathname === "/wait") ctx.waitUntil(Bun.sleep(3));
    if (pathname === "/hang") await new Promise((resolve) => { request.signal.addEventListener("abort", resolve); });
    return new Response(request.body);
  },
  task: (input) => input,
  scheduled() { console.log("event"); },
  onFork(ctx) { if (ctx.env.FAIL) throw new Error("no"); },
};
`;

let host: WorkerHostUnderTest;

async function begin(): Promise<void> {
  host = await WorkerHostUnderTest.start();
  await using client = await host.client();
  await client.load({ entry: await host.bundle(source), name: "fuzz" });
}

beforeAll(begin, 60_000);
afterAll(() => host[Symbol.asyncDispose]());

const ids = fc.integer({ min: 0, max: 5 });
const amounts = fc.oneof(fc.nat(1000), fc.constantFrom(65_536, 131_072, 262_144, 0xffffffff));

function message<T>(type: WorkerType, fields: fc.Arbitrary<T>): fc.Arbitrary<Uint8Array> {
  return fc
    .tuple(ids, fields)
    .map(([id, value]) => encodeMessage(workerTypes[type], id, value as Record<string, unknown>));
}

const headers = fc.array(fc.tuple(fc.constantFrom("a", "upgrade", "content-length", "host"), fc.string()), {
  maxLength: 3,
});
const requests = fc.oneof(
  message("PING", fc.constant({})),
  message("HELLO", fc.constant({})),
  message("QUIESCE", fc.constant({})),
  message("SETUP", fc.constant({})),
  message("LOAD", fc.record({ protocol: fc.nat(3), name: fc.string(), entry: fc.constant("/nowhere.js") })),
  message(
    "FORKED",
    fc.record({
      protocol: fc.constant(2),
      vm: fc.record({ id: fc.string(), index: amounts, generation: fc.nat(3) }),
      env: fc.dictionary(fc.constantFrom("A", "FAIL", "__proto__", ""), fc.string(), { maxKeys: 2 }),
      secrets: fc.constant({}),
    }),
  ),
  message(
    "REQUEST",
    fc.record({
      requestId: fc.string(),
      method: fc.constantFrom("GET", "POST", "HEAD", "CONNECT", "a b"),
      url: fc.constantFrom(
        "http://w/",
        "http://w/throw",
        "http://w/give",
        "http://w/wait",
        "http://w/hang",
        "no",
      ),
      headers,
      body: fc.boolean(),
    }),
  ),
  message("TASK", fc.record({ requestId: fc.string() })),
  message("SCHEDULED", fc.record({ requestId: fc.string(), cron: fc.string(), time: amounts })),
  message("END", fc.record({ s: fc.constantFrom(0, 1) })),
  message("CANCEL", fc.record({ s: fc.constantFrom(0, 1) })),
  message("CREDIT", fc.record({ s: fc.nat(2), n: amounts })),
  fc
    .tuple(ids, fc.uint8Array({ minLength: 1, maxLength: 5000 }))
    .map(([id, data]) => encodeData(id, 0, data)),
  fc.constant(encodeData(1, 0, Buffer.from('{"json":[1,2]}'))),
  fc.constant(MARKER),
);

/** A host says `stream`, then another one starts a session of its own: the worker host must answer that. */
async function survives(stream: Uint8Array, cuts: readonly number[]): Promise<void> {
  const socket = await host.socket();
  const answered = Promise.withResolvers<void>();
  const reader = new FrameReader();
  socket.on("data", (chunk: Uint8Array) =>
    reader.push(chunk, (payload) => {
      const told = parseGuestMessage(payload); // whatever it says is well-formed
      if (told.type === "PONG" && told.id === 4_000_000) answered.resolve();
    }),
  );
  const all = Buffer.concat([MARKER, stream, MARKER, encodeMessage(workerTypes.PING, 4_000_000)]);
  let at = 0;
  for (const cut of cuts) {
    socket.write(all.subarray(at, at + cut));
    at += cut;
    await new Promise(setImmediate);
  }
  socket.write(all.subarray(at));
  await Promise.race([answered.promise, once(socket, "close")]);
  expect({ alive: host.alive, destroyed: socket.destroyed, stderr: host.stderr }).toEqual({
    alive: true,
    destroyed: false,
    stderr: "",
  });
  socket.destroy();
}

const cuts = fc.array(fc.nat(300), { maxLength: 6 });

test("the worker host survives messages in any order, cut and mangled, and stays in step", async () => {
  const streams = fc.array(
    fc.oneof({ weight: 3, arbitrary: requests }, { weight: 2, arbitrary: mutated(requests) }),
    { minLength: 1, maxLength: 25 },
  );
  await fc.assert(
    fc.asyncProperty(streams, cuts, (parts, at) => survives(Buffer.concat(parts), at)),
    { seed: 31, numRuns: 500 },
  );
  // And it works as before.
  await using client = await host.client();
  const answer = await client.fetch({
    method: "POST",
    url: "http://w/",
    body: new Uint8Array(200_000).fill(65),
  });
  expect(await textOf(answer)).toBe("A".repeat(200_000));
  expect(await client.task([1])).toEqual([1]);
  expect(host.faults).toEqual([]);
}, 240_000);

const answer = { status: 200, headers: [["a", "b"]], url: "http://o.test/x" };

/** What a host may say of a request of the worker's, and what it may not. */
const reactions: fc.Arbitrary<(id: number) => Uint8Array> = fc.oneof(
  fc
    .constantFrom(
      ["ANSWER", { ...answer, body: true }],
      ["ANSWER", { ...answer, body: true, headers: [["content-encoding", "gzip"]] }],
      ["ANSWER", { ...answer, status: 204 }],
      ["ANSWER", { ...answer, status: 204, body: true }],
      ["ANSWER", { ...answer, status: 301, statusText: "\u2603", redirected: true }],
      ["ANSWER", { ...answer, url: "no" }],
      ["ANSWER", {}],
      ["END", { s: 0 }],
      ["ABORT", { s: 0, message: "m" }],
      ["ERROR", { code: "FAILED", message: "m" }],
      ["CANCEL", { s: 1 }],
      ["CREDIT", { s: 1, n: 65_536 }],
      ["CREDIT", { s: 1, n: 262_144 }],
      ["DONE", {}],
      ["PING", {}],
    )
    .map(
      ([type, value]) =>
        (id: number) =>
          encodeMessage(workerTypes[type as WorkerType], id, value as object as never),
    ),
  fc.uint8Array({ minLength: 1, maxLength: 20_000 }).map((data) => (id: number) => encodeData(id, 0, data)),
);

test("the worker host survives whatever its host says of the worker's own requests", async () => {
  const told = async (script: readonly ((id: number) => Uint8Array)[]) => {
    const socket = await host.socket();
    const ponged = Promise.withResolvers<void>();
    const reader = new FrameReader();
    let at = 0;
    const take = (message: GuestMessage) => {
      if (message.type === "PONG") ponged.resolve();
      if (message.type !== "OUTBOUND") return;
      for (const react of script.slice(at, at + 4)) socket.write(react(message.id));
      at += 4;
    };
    socket.on("data", (chunk: Uint8Array) =>
      reader.push(chunk, (payload) => take(parseGuestMessage(payload))),
    );
    const fork = { protocol: 3, vm: { id: "v", index: 1, generation: 1 }, env: {}, secrets: {} };
    const request = { requestId: "r", method: "GET", url: "http://w/out", headers: [] };
    const asks = [2, 3, 4].map((id) => encodeMessage(workerTypes.REQUEST, id, request));
    socket.write(Buffer.concat([MARKER, encodeMessage(workerTypes.FORKED, 1, fork), ...asks]));
    await Bun.sleep(4);
    socket.write(Buffer.concat([MARKER, encodeMessage(workerTypes.PING, 9)]));
    await Promise.race([ponged.promise, once(socket, "close")]);
    expect({ alive: host.alive, destroyed: socket.destroyed, stderr: host.stderr }).toEqual({
      ...{ alive: true, destroyed: false, stderr: "" },
    });
    socket.destroy();
  };
  await fc.assert(fc.asyncProperty(fc.array(reactions, { maxLength: 12 }), told), { seed: 33, numRuns: 400 });
  await using client = await host.client({
    outbound: async ({ url, body }) => ({
      ...answer,
      headers: [],
      url,
      redirected: false,
      ...(body && { body }),
    }),
  });
  await client.forked({
    vm: { id: "v", index: 1, generation: 1 },
    env: {},
    secrets: {},
  });
  const back = await client.fetch({ method: "GET", url: "http://w/out" });
  expect(await textOf(back)).toBe("\0".repeat(300_000));
  expect(host.faults).toEqual([]);
}, 240_000);

test("the worker host survives random bytes and random MessagePack", async () => {
  const anything = fc.anything({ withBigInt: false, withNullPrototype: false, maxDepth: 3 });
  const framed = fc
    .tuple(
      fc.constantFrom(...Object.values(workerTypes).filter((type) => type !== workerTypes.SHUTDOWN)),
      ids,
      anything,
    )
    .map((value) => {
      const payload = pack(value);
      const frame = Buffer.alloc(4 + payload.length);
      frame.writeUInt32BE(payload.length);
      frame.set(payload, 4);
      return frame;
    });
  const streams = fc.array(fc.oneof(fc.uint8Array({ maxLength: 300 }), framed), { maxLength: 20 });
  await fc.assert(
    fc.asyncProperty(streams, cuts, (parts, at) => survives(Buffer.concat(parts), at)),
    { seed: 32, numRuns: 300 },
  );
}, 240_000);

test("a host that asks without end and reads nothing is held up, and its memory stays", async () => {
  const before = host.residentKiB;
  const socket = await host.socket();
  socket.pause();
  socket.write(MARKER);
  const block = Buffer.concat(
    Array.from({ length: 1000 }, (_, i) => encodeMessage(workerTypes.HELLO, i + 1)),
  );
  let sent = 0;
  while (sent < 64 << 20) {
    sent += block.length;
    if (socket.write(block)) continue;
    const drained = await Promise.race([
      once(socket, "drain").then(() => true),
      Bun.sleep(500).then(() => false),
    ]);
    if (!drained) break;
  }
  expect(sent).toBeLessThan(64 << 20);
  expect(host.residentKiB - before).toBeLessThan(64 * 1024);
  socket.destroy();
  await using client = await host.client();
  await client.ping();
}, 60_000);
