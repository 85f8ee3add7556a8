import { expect, test } from "bun:test";
import { rejection } from "../support/agent-peer.ts";
import { eventually, textOf, WorkerHostUnderTest } from "../support/worker-process.ts";

const source = `
let count = 0;
const seen = [];
let ticks = 0;
setInterval(() => { ticks++; console.log("tick", ticks); }, 5);
export default {
  async onFork(ctx) {
    seen.push({ vm: ctx.vm, env: { ...ctx.env }, process: process.env.WORD ?? null });
    if (ctx.env.FAIL) throw new Error("cannot be a child");
    await Bun.sleep(2);
  },
  async fetch(request, env, ctx) {
    const { pathname } = new URL(request.url);
    if (pathname === "/wait") { await new Promise((r) => request.signal.addEventListener("abort", r)); return new Response(); }
    if (pathname === "/after") { ctx.waitUntil(Bun.sleep(60)); return new Response("early"); }
    return Response.json({ count: ++count, env, vm: ctx.vm, word: process.env.WORD ?? null, bun: Bun.env.WORD ?? null, seen });
  },
};
`;

const get = (path = "/") => ({ method: "GET", url: `http://w${path}` });

function child(index: number, env: Record<string, string>, secrets: Record<string, string> = {}) {
  return { vm: { id: `vm-${index}`, index, generation: 1 }, env, secrets };
}

test("a child goes on with the parent's state, its own identity and variables, on a new connection", async () => {
  await using running = await WorkerHostUnderTest.running(source);
  const { client: parent, host } = running;
  await parent.warm([get(), get()]);
  const inParent = JSON.parse(await textOf(await parent.fetch(get())));
  expect(inParent).toMatchObject({ count: 3, env: {}, vm: { index: 0, generation: 0 }, word: null });
  await parent.quiesce();
  await parent[Symbol.asyncDispose]();

  await using first = await host.client();
  await first.forked(child(5, { WORD: "five" }, { KEY: "secret" }));
  expect(JSON.parse(await textOf(await first.fetch(get())))).toEqual({
    count: 4,
    env: { WORD: "five", KEY: "secret" },
    vm: { id: "vm-5", index: 5, generation: 1 },
    word: "five",
    bun: "five",
    seen: [
      { vm: { id: "vm-5", index: 5, generation: 1 }, env: { WORD: "five", KEY: "secret" }, process: "five" },
    ],
  });
  // A child can be forked again; what only the first one had is gone.
  await first.quiesce();
  await first[Symbol.asyncDispose]();
  await using second = await host.client();
  await second.forked(child(6, { OTHER: "six" }));
  expect(JSON.parse(await textOf(await second.fetch(get())))).toMatchObject({
    count: 5,
    env: { OTHER: "six" },
    word: null,
  });
});

test("after quiesce() not one byte comes until the host speaks again, and then what was written meanwhile", async () => {
  await using running = await WorkerHostUnderTest.running(source);
  const { client, host } = running;
  await eventually(() => host.logs.length > 3);
  await client.quiesce();
  const before = host.logs.length;
  await Bun.sleep(60);
  expect(host.logs.length).toBe(before);
  await client.ping();
  await eventually(() => host.logs.length > before + 5);
  expect(host.logs.map((log) => log.text)).toEqual(host.logs.map((_, i) => `tick ${i + 1}`));
});

test("quiesce() is refused while anything runs, waitUntil included, on either side", async () => {
  await using running = await WorkerHostUnderTest.running(source);
  const { client, host } = running;
  const control = new AbortController();
  const waiting = rejection(client.fetch(get("/wait"), { signal: control.signal }));
  expect(await rejection(client.quiesce())).toMatchObject({ code: "AGENT_REFUSED", remote: "BUSY" });
  control.abort();
  await waiting;
  await eventually(() => client.pending === 0);
  const early = await client.fetch(get("/after"));
  expect(await textOf(early)).toBe("early");
  expect(await rejection(client.quiesce())).toMatchObject({ remote: "BUSY" });
  await early.done;
  await client.quiesce();

  // What an earlier host started counts, too: the worker still runs it.
  await textOf(await client.fetch(get("/after")));
  await client[Symbol.asyncDispose]();
  await using next = await host.client();
  expect(await rejection(next.quiesce())).toMatchObject({ code: "AGENT_REFUSED", remote: "BUSY" });
  await Bun.sleep(80);
  await next.quiesce();
});

test("a host that goes aborts what it asked for; half a frame of it disturbs nobody", async () => {
  await using running = await WorkerHostUnderTest.running(source);
  const { client, host } = running;
  const lost = rejection(client.fetch(get("/wait")));
  await Bun.sleep(10);
  client.close();
  expect(await lost).toMatchObject({ code: "AGENT_CLOSED" });
  const half = await host.socket();
  half.write(Buffer.from([0xff, 0xc1, 0xc1, 0xc1, 0x46, 0x4c, 0x52, 0x0a, 0, 0, 1, 0, 0x93]));
  await Bun.sleep(10);
  await using next = await host.client();
  await next.ping();
  await eventually(() => next.pending === 0);
  await next.quiesce();
});

test("forked() fails when onFork() does, and for what no environment holds", async () => {
  await using running = await WorkerHostUnderTest.running(source);
  const { client } = running;
  expect(await rejection(client.forked(child(1, { FAIL: "1" })))).toMatchObject({
    code: "AGENT_REFUSED",
    remote: "FORK_FAILED",
    workerStack: expect.stringContaining("worker.ts:"),
  });
  for (const env of [{ "A=B": "1" }, { "": "1" }, { A: "x\0y" }, { A: "x".repeat(70_000) }])
    expect(await rejection(client.forked(child(1, env)))).toMatchObject({ code: "BAD_ARGUMENT" });
  await client.ping();
});
