import { expect, test } from "bun:test";
import { createHash } from "node:crypto";
import { rejection } from "../support/agent-peer.ts";
import { textOf, WorkerHostUnderTest } from "../support/worker-process.ts";

const MiB = 1 << 20;
/** The longest body that there is. */
const GiB = 1 << 30;

const source = `
const part = Uint8Array.from({ length: 65536 }, (_, i) => (i * 7) % 253);
export default {
  async fetch(request) {
    const { pathname, searchParams } = new URL(request.url);
    if (pathname === "/up") {
      const hash = new Bun.CryptoHasher("sha256");
      let bytes = 0;
      for await (const chunk of request.body) { bytes += chunk.length; hash.update(chunk); }
      return Response.json({ bytes, hash: hash.digest("hex") });
    }
    let left = Number(searchParams.get("bytes"));
    return new Response(new ReadableStream({
      pull(controller) {
        if (left === 0) return controller.close();
        const chunk = part.subarray(0, Math.min(left, part.length));
        left -= chunk.length;
        controller.enqueue(chunk);
      },
    }));
  },
};
`;

/** As the worker's. */
const part = Uint8Array.from({ length: 65_536 }, (_, i) => (i * 7) % 253);

function* parts(bytes: number): Generator<Uint8Array> {
  for (let left = bytes; left > 0; left -= part.length) yield part.subarray(0, Math.min(left, part.length));
}

function hashOf(bytes: number): string {
  const hash = createHash("sha256");
  for (const chunk of parts(bytes)) hash.update(chunk);
  return hash.digest("hex");
}

/** Resident memory of both processes, and by how much it was above its start at most. */
function watch(host: WorkerHostUnderTest) {
  const now = () => ({ guest: host.residentKiB * 1024, here: process.memoryUsage.rss() });
  const start = now();
  const most = { guest: 0, here: 0 };
  const look = () => {
    const { guest, here } = now();
    most.guest = Math.max(most.guest, guest - start.guest);
    most.here = Math.max(most.here, here - start.here);
  };
  const timer = setInterval(look, 20);
  return { most, [Symbol.dispose]: () => clearInterval(timer) };
}

async function upload(running: Running, bytes: number): Promise<unknown> {
  const body = async function* () {
    yield* parts(bytes);
  };
  const url = "http://w/up";
  return JSON.parse(await textOf(await running.client.fetch({ method: "POST", url, body: body() })));
}

async function download(running: Running, bytes: number): Promise<unknown> {
  const url = `http://w/down?bytes=${bytes}`;
  const answer = await running.client.fetch({ method: "GET", url });
  const hash = createHash("sha256");
  let received = 0;
  for await (const chunk of answer.body) {
    received += chunk.length;
    hash.update(chunk);
  }
  return { bytes: received, hash: hash.digest("hex") };
}

type Running = Awaited<ReturnType<typeof WorkerHostUnderTest.running>>;

test("1 GiB passes up and down whole while neither end's memory grows by 64 MiB", async () => {
  await using running = await WorkerHostUnderTest.running(source);
  const expected = { bytes: GiB, hash: hashOf(GiB) };
  // Warm first, so that what is measured is not the engines' start.
  await upload(running, 64 * MiB);
  await download(running, 64 * MiB);
  for (const pass of [upload, download]) {
    using memory = watch(running.host);
    expect(await pass(running, GiB)).toEqual(expected);
    expect(memory.most.guest).toBeLessThan(64 * MiB);
    expect(memory.most.here).toBeLessThan(64 * MiB);
  }
}, 300_000);

test("one byte above 1 GiB is refused on either way, and the worker goes on", async () => {
  await using running = await WorkerHostUnderTest.running(source);
  const message = expect.stringContaining(`more than ${GiB} bytes`);
  expect(await rejection(upload(running, GiB + 1))).toMatchObject({ code: "BODY_TOO_LARGE", message });
  const down = rejection(download(running, GiB + 1));
  expect(await down).toMatchObject({ code: "AGENT_REFUSED", remote: "BODY_TOO_LARGE", message });
  expect(await upload(running, MiB)).toEqual({ bytes: MiB, hash: hashOf(MiB) });
}, 300_000);
