import { expect, test } from "bun:test";
import { createHash } from "node:crypto";
import { rejection } from "../support/agent-peer.ts";
import { eventually, textOf, WorkerHostUnderTest } from "../support/worker-process.ts";

const MiB = 1 << 20;

const source = `
let sent = 0, cancelled = 0, pulled = 0;
const chunk = new Uint8Array(65536);
for (let i = 0; i < chunk.length; i++) chunk[i] = i % 251;
const handlers = {
  async "/count"(request) {
    const hash = new Bun.CryptoHasher("sha256");
    let bytes = 0;
    for await (const part of request.body) { bytes += part.length; hash.update(part); }
    return Response.json({ bytes, hash: hash.digest("hex") });
  },
  "/give"(request) {
    let left = Number(new URL(request.url).searchParams.get("bytes"));
    sent = 0;
    return new Response(new ReadableStream({
      pull(controller) {
        if (left === 0) return controller.close();
        const part = chunk.subarray(0, Math.min(left, chunk.length));
        left -= part.length;
        sent += part.length;
        controller.enqueue(part);
      },
    }));
  },
  "/echo": (request) => new Response(request.body),
  async "/slow"(request) {
    const reader = request.body.getReader();
    await reader.read();
    pulled++;
    if (!request.signal.aborted) await new Promise((resolve) => request.signal.addEventListener("abort", resolve));
    cancelled++;
    return new Response();
  },
  "/early": () => new Response("not needed"),
  "/endless"(request) {
    request.signal.addEventListener("abort", () => { cancelled++; });
    return new Response(new ReadableStream({
      pull(controller) { controller.enqueue(chunk); },
      cancel() { cancelled++; },
    }));
  },
  async "/hang"(request) {
    await new Promise((resolve) => request.signal.addEventListener("abort", resolve));
    cancelled++;
    throw request.signal.reason;
  },
  "/breaks": () => new Response(new ReadableStream({
    start(controller) { controller.enqueue(chunk); },
    async pull() { await Bun.sleep(5); throw new Error("the source broke"); },
  })),
  "/counters": () => Response.json({ sent, cancelled, pulled }),
  "/text": () => new Response(new ReadableStream({ start(c) { c.enqueue("tä"); c.enqueue("xt"); c.close(); } })),
};
export default { fetch: (request) => handlers[new URL(request.url).pathname](request) };
`;

const url = (path: string) => `http://w${path}`;

async function counters(client: { fetch: WorkerFetch }): Promise<Record<string, number>> {
  return JSON.parse(await textOf(await client.fetch({ method: "GET", url: url("/counters") })));
}

type WorkerFetch = Awaited<ReturnType<typeof WorkerHostUnderTest.running>>["client"]["fetch"];

/** Repeating bytes whose place shows. */
function pattern(bytes: number): Uint8Array {
  return Uint8Array.from({ length: bytes }, (_, i) => (i * 7) % 253);
}

test("64 MiB up and 64 MiB down pass without being held", async () => {
  await using running = await WorkerHostUnderTest.running(source);
  const { client, host } = running;
  const total = 64 * MiB;
  const part = pattern(100_000);
  const hash = createHash("sha256");
  // One small round first, so that what is measured is not the start.
  await textOf(await client.fetch({ method: "POST", url: url("/count"), body: part }));
  const before = { guest: host.residentKiB, here: process.memoryUsage.rss() };
  let most = 0;
  async function* upload() {
    for (let left = total; left > 0; ) {
      const next = part.subarray(0, Math.min(left, part.length));
      left -= next.length;
      hash.update(next);
      most = Math.max(most, host.residentKiB);
      yield next;
    }
  }
  const answer = await client.fetch({ method: "POST", url: url("/count"), body: upload() });
  expect(JSON.parse(await textOf(answer))).toEqual({ bytes: total, hash: hash.digest("hex") });
  const down = await client.fetch({ method: "GET", url: url(`/give?bytes=${total}`) });
  let bytes = 0;
  for await (const chunk of down.body) {
    bytes += chunk.length;
    most = Math.max(most, host.residentKiB);
  }
  expect(bytes).toBe(total);
  // Garbage is collected when Bun likes: a half of the body would be more than that.
  expect(most - before.guest).toBeLessThan(32 * 1024);
  expect(process.memoryUsage.rss() - before.here).toBeLessThan(48 * MiB);
});

test("a worker whose answer nobody reads is held up, and so is a client whose body nobody reads", async () => {
  await using running = await WorkerHostUnderTest.running(source);
  const { client } = running;
  const down = await client.fetch({ method: "GET", url: url(`/give?bytes=${64 * MiB}`) });
  await Bun.sleep(100);
  const { sent } = await counters(client);
  expect(sent).toBeLessThan(MiB); // windows and a few chunks
  await down.body.cancel();

  let given = 0;
  async function* upload() {
    for (;;) {
      given += 65536;
      yield new Uint8Array(65536);
    }
  }
  const control = new AbortController();
  const slow = rejection(
    client.fetch({ method: "POST", url: url("/slow"), body: upload() }, { signal: control.signal }),
  );
  await Bun.sleep(100);
  expect(given).toBeLessThan(MiB);
  expect((await counters(client)).pulled).toBe(1);
  control.abort();
  expect(await slow).toMatchObject({ code: "ABORTED" });
  const after = given;
  await Bun.sleep(20);
  expect(given).toBe(after);
});

test("a body passes while it comes, both ways at once, with the marker in it", async () => {
  await using running = await WorkerHostUnderTest.running(source);
  const { client } = running;
  const marker = [0xff, 0xc1, 0xc1, 0xc1, 0x46, 0x4c, 0x52, 0x0a];
  const bytes = pattern(3 * MiB);
  for (const at of [0, 1, 32_700, 32_704, 65_530, 131_070, 131_072, 2 * MiB]) bytes.set(marker, at);
  const step = Promise.withResolvers<void>();
  async function* upload() {
    yield bytes.subarray(0, 200_000);
    await step.promise;
    yield bytes.subarray(200_000);
  }
  const answer = await client.fetch({ method: "POST", url: url("/echo"), body: upload() });
  const parts: Uint8Array[] = [];
  for await (const chunk of answer.body) {
    parts.push(chunk);
    step.resolve();
  }
  expect(Buffer.concat(parts).equals(bytes)).toBe(true);
  expect(await textOf(await client.fetch({ method: "GET", url: url("/text") }))).toBe("täxt");
});

test("an answer that comes early ends the upload", async () => {
  await using running = await WorkerHostUnderTest.running(source);
  const { client } = running;
  let stopped = false;
  const body = new ReadableStream<Uint8Array>({
    pull: (controller) => controller.enqueue(new Uint8Array(10_000)),
    cancel: () => {
      stopped = true;
    },
  });
  const answer = await client.fetch({ method: "POST", url: url("/early"), body });
  expect(await textOf(answer)).toBe("not needed");
  await answer.done;
  expect(stopped).toBe(true);
  await client.quiesce();
});

test("100 requests at once each get their own answer", async () => {
  await using running = await WorkerHostUnderTest.running(source);
  const { client } = running;
  const echoed = await Promise.all(
    Array.from({ length: 100 }, async (_, i) => {
      const bytes = pattern(10_000 + 1000 * i);
      const answer = await client.fetch({ method: "POST", url: url("/echo"), body: bytes });
      return Buffer.from(await new Response(answer.body).bytes()).equals(bytes);
    }),
  );
  expect(echoed.every(Boolean)).toBe(true);
  expect(client.pending).toBe(0);
});

test("more requests than allowed are refused, and go again when there is room", async () => {
  await using running = await WorkerHostUnderTest.running(source, { maxRequests: 2 });
  const { client } = running;
  const control = new AbortController();
  const hangs = [1, 2].map(() =>
    rejection(client.fetch({ method: "GET", url: url("/hang") }, { signal: control.signal })),
  );
  expect(await rejection(client.fetch({ method: "GET", url: url("/early") }))).toMatchObject({
    code: "AGENT_REFUSED",
    remote: "LIMIT",
  });
  control.abort();
  for (const error of await Promise.all(hangs)) expect(error).toMatchObject({ code: "ABORTED" });
  await eventually(() => client.pending === 0);
  expect(await textOf(await client.fetch({ method: "GET", url: url("/early") }))).toBe("not needed");
});

test("whoever cancels, aborts or waits too long aborts the worker's request", async () => {
  await using running = await WorkerHostUnderTest.running(source);
  const { client, host } = running;
  const cancelledBody = await client.fetch({ method: "GET", url: url("/endless") });
  const reader = cancelledBody.body.getReader();
  await reader.read();
  await reader.cancel();
  await cancelledBody.done;
  expect((await counters(client)).cancelled).toBe(2); // the signal, and the stream

  const control = new AbortController();
  const aborted = await client.fetch({ method: "GET", url: url("/endless") }, { signal: control.signal });
  const failing = rejection(textOf(aborted));
  control.abort();
  expect(await failing).toMatchObject({ code: "ABORTED" });
  await aborted.done;
  expect((await counters(client)).cancelled).toBe(4);

  const late = rejection(client.fetch({ method: "GET", url: url("/hang") }, { timeoutMs: 20 }));
  expect(await late).toMatchObject({ code: "AGENT_TIMEOUT" });
  await eventually(() => client.pending === 0);
  expect((await counters(client)).cancelled).toBe(5);
  expect(host.logs).toEqual([]); // who went away is no error of the worker's
  await client.quiesce();
});

test("a source that fails aborts the request; an answer that fails breaks off", async () => {
  await using running = await WorkerHostUnderTest.running(source);
  const { client, host } = running;
  async function* breaks() {
    yield new Uint8Array(10);
    throw new Error("my disk");
  }
  const failed = await rejection(client.fetch({ method: "POST", url: url("/slow"), body: breaks() }));
  expect(failed).toMatchObject({ code: "ABORTED", cause: { message: "my disk" } });
  await eventually(() => client.pending === 0);
  expect((await counters(client)).cancelled).toBe(1);

  const answer = await client.fetch({ method: "GET", url: url("/breaks") });
  expect(answer.status).toBe(200);
  expect(await rejection(textOf(answer))).toMatchObject({ code: "AGENT_REFUSED", remote: "WORKER_FAILED" });
  await answer.done;
  expect(host.logs).toMatchObject([{ level: "error", text: expect.stringContaining("the source broke") }]);
});

test("bodies above their limits are refused on either way", async () => {
  await using running = await WorkerHostUnderTest.running(source, {
    maxRequestBytes: 1000,
    maxResponseBytes: 500_000,
  });
  const { client } = running;
  const large = client.fetch({ method: "POST", url: url("/count"), body: new Uint8Array(1001) });
  expect(await rejection(large)).toMatchObject({ code: "BODY_TOO_LARGE" });
  const fits = await client.fetch({ method: "POST", url: url("/count"), body: new Uint8Array(1000) });
  expect(JSON.parse(await textOf(fits)).bytes).toBe(1000);
  const answer = await client.fetch({ method: "GET", url: url("/give?bytes=500001") });
  expect(await rejection(textOf(answer))).toMatchObject({ code: "AGENT_REFUSED", remote: "BODY_TOO_LARGE" });
  const all = await client.fetch({ method: "GET", url: url("/give?bytes=500000") });
  expect((await textOf(all)).length).toBeGreaterThan(0);
});
