import { describe, expect, test } from "bun:test";
import { rejection } from "../support/agent-peer.ts";
import { textOf, WorkerHostUnderTest } from "../support/worker-process.ts";

/** What the modules answer with. */
const helper = "\nfunction say({ url }, word = 'hello') { return word + ' ' + new URL(url).pathname }\n";

/** Every shape of module that answers requests, and what it is taken for. */
const shapes: Record<string, { source: string; shape: string; handlers: string[] }> = {
  "export default { fetch }": {
    source: "export default { fetch: (request) => new Response(say(request)) };",
    shape: "object",
    handlers: ["fetch"],
  },
  "an object whose fetch needs its this": {
    source:
      "export default { word: 'hello', fetch(request) { return new Response(say(request, this.word)) } };",
    shape: "object",
    handlers: ["fetch"],
  },
  "an instance of a class": {
    source:
      "class App { #word = 'hello'; fetch(request) { return new Response(say(request, this.#word)) } }\nexport default new App();",
    shape: "object",
    handlers: ["fetch"],
  },
  "a Hono app": {
    source: 'import { Hono } from "hono";\nexport default new Hono().get("*", (c) => c.text(say(c.req)));',
    shape: "object",
    handlers: ["fetch"],
  },
  "a default function": {
    source: "export default async (request) => new Response(say(request));",
    shape: "function",
    handlers: ["fetch"],
  },
  "a named export": {
    source: "export function fetch(request) { return new Response(say(request)) }\nexport function task() {}",
    shape: "object",
    handlers: ["fetch", "task"],
  },
  "all handlers": {
    source:
      "export default { setup() {}, fetch: (request) => new Response(say(request)), task() {}, scheduled() {}, onFork() {} };",
    shape: "object",
    handlers: ["setup", "fetch", "task", "scheduled", "onFork"],
  },
  "Bun.serve": {
    source:
      "const server = Bun.serve({ port: 4000, fetch: (request, server) => new Response(say(request), { headers: { port: String(server.port) } }) });\nif (server.port !== 4000 || server.url.port !== '4000') throw new Error('port');\nawait server.stop();",
    shape: "bun-serve",
    handlers: ["fetch"],
  },
  'serve from "bun", with an error handler': {
    source:
      'import { serve } from "bun";\nserve({ fetch: () => { throw new Error("/p") }, error: (error) => new Response("hello " + error.message) });',
    shape: "bun-serve",
    handlers: ["fetch"],
  },
  "an exported Bun.serve beside other handlers": {
    source:
      "export default Bun.serve({ fetch: (request) => new Response(say(request)) });\nexport function onFork() {}",
    shape: "bun-serve",
    handlers: ["fetch", "onFork"],
  },
  "Bun.serve for the main module only": {
    source: "if (import.meta.main) Bun.serve({ fetch: (request) => new Response(say(request)) });",
    shape: "bun-serve",
    handlers: ["fetch"],
  },
  "Bun.serve after the module has loaded": {
    source: "setTimeout(() => Bun.serve({ fetch: (request) => new Response(say(request)) }), 50);",
    shape: "bun-serve",
    handlers: ["fetch"],
  },
  "Deno.serve(handler), awaited to its end": {
    source:
      "const server = Deno.serve((request, info) => new Response(say(request)));\nif (info() !== 'tcp') throw new Error();\nfunction info() { return server.addr.transport }\nawait server.finished;",
    shape: "deno-serve",
    handlers: ["fetch"],
  },
  "Deno.serve(options, handler)": {
    source:
      "Deno.serve({ port: 9, onError: (error) => new Response('hello ' + error.message) }, () => { throw new Error('/p') });",
    shape: "deno-serve",
    handlers: ["fetch"],
  },
  "Deno.serve({ handler })": {
    source: "Deno.serve({ port: 9, handler: (request) => new Response(say(request)) });",
    shape: "deno-serve",
    handlers: ["fetch"],
  },
};

describe("load() finds the handlers of", () => {
  for (const [name, { source, shape, handlers }] of Object.entries(shapes)) {
    test(name, async () => {
      await using host = await WorkerHostUnderTest.start();
      await using client = await host.client();
      const loaded = await client.load({ entry: await host.bundle(source + helper), name: "test" });
      expect({ shape: loaded.shape as string, handlers: loaded.handlers as string[] }).toEqual({
        shape,
        handlers,
      });
      const response = await client.fetch({ method: "GET", url: "http://worker/p" });
      expect(await textOf(response)).toBe("hello /p");
      expect(response.status).toBe(200);
      await response.done;
    });
  }
});

describe("load() refuses", () => {
  const bad: Record<string, [source: string, message: RegExp]> = {
    "a module without a handler": ["export const word = 1;", /no handler.*word/],
    "a module that throws": ["throw new Error('out of luck');", /Cannot load the worker "test".*out of luck/],
    "a module that exits": ["process.exit(3);", /process\.exit\(3\)/],
    "a module that serves what is no route": ['Bun.serve({ routes: { "/a": 5 } });', /"\/a"/],
    "a module that serves nothing": ["Bun.serve({});", /Bun\.serve needs/],
  };
  for (const [name, [source, message]] of Object.entries(bad)) {
    test(name, async () => {
      await using host = await WorkerHostUnderTest.start();
      await using client = await host.client();
      const error = await rejection(client.load({ entry: await host.bundle(source), name: "test" }));
      expect(error).toMatchObject({ code: "AGENT_REFUSED", remote: "LOAD_FAILED" });
      expect(error.message).toMatch(message);
      expect(await rejection(client.fetch({ method: "GET", url: "http://w/" }))).toMatchObject({
        code: "AGENT_REFUSED",
      });
      await client.ping();
    });
  }

  test("a second worker, a bundle that is not there, and none", async () => {
    await using host = await WorkerHostUnderTest.start();
    await using client = await host.client();
    expect(await rejection(client.load({ name: "test" }))).toMatchObject({ remote: "STATE" });
    expect(await rejection(client.warm())).toMatchObject({ remote: "STATE" });
    const entry = await host.bundle("export default () => new Response();");
    await client.load({ entry, name: "test" });
    expect(await rejection(client.load({ entry, name: "test" }))).toMatchObject({ remote: "STATE" });
    await using other = await WorkerHostUnderTest.start();
    await using its = await other.client();
    expect(await rejection(its.load({ entry: "/nowhere.js", name: "test" }))).toMatchObject({
      remote: "LOAD_FAILED",
    });
  });
});

test("what a worker has no handler for is refused", async () => {
  await using running = await WorkerHostUnderTest.running("export default { fetch: () => new Response() };");
  const { client } = running;
  for (const asked of [client.task(1), client.scheduled({ cron: "* * * * *", time: 1 })])
    expect(await rejection(asked)).toMatchObject({ code: "AGENT_REFUSED", remote: "NO_HANDLER" });
});

test("setup(), scheduled(), waitUntil() and task() get what they should", async () => {
  await using running = await WorkerHostUnderTest.running(`
    const seen = [];
    export default {
      async setup(ctx) { await Bun.sleep(5); seen.push(["setup", ctx.vm.generation, Object.keys(ctx.env).length]); },
      scheduled(event, env, ctx) {
        if (event.cron === "boom") throw new Error("it is night");
        ctx.waitUntil(Bun.sleep(5).then(() => seen.push(["scheduled", event.cron, event.scheduledTime])));
      },
      fetch(request, env, ctx) {
        ctx.passThroughOnException();
        ctx.waitUntil(Bun.sleep(20).then(() => { seen.push("waited"); ctx.waitUntil(Bun.sleep(5).then(() => seen.push("again"))); }));
        ctx.waitUntil(Promise.reject(new Error("not settled well")));
        return new Response("early");
      },
      task(input, ctx) { ctx.waitUntil(Bun.sleep(5)); return { input, seen, id: ctx.requestId }; },
    };
  `);
  const { client, host } = running;
  const warmed = await client.warm([{ method: "GET", url: "http://w/" }]);
  expect(warmed.requests).toMatchObject([{ status: 200, bytes: 5 }]);
  expect(warmed.setupMs).toBeGreaterThanOrEqual(4);
  const called = await client.scheduled({ cron: "0 0 * * *", time: 12345 });
  expect(called).toEqual({ waited: 1, failed: 0, unsettled: 0 });
  const boom = await rejection(client.scheduled({ cron: "boom", time: 1 }));
  expect(boom).toMatchObject({
    code: "TASK_FAILED",
    message: expect.stringContaining("it is night"),
    workerStack: expect.stringMatching(/Error: it is night\n.*scheduled/),
  });
  const response = await client.fetch({ method: "GET", url: "http://w/" });
  expect(await response.done).toEqual({ waited: 3, failed: 1, unsettled: 0 });
  expect(await client.task({ deep: [1, "ä", null] }, { requestId: "mine" })).toEqual({
    input: { deep: [1, "ä", null] },
    seen: [["setup", 0, 0], "waited", "again", ["scheduled", "0 0 * * *", 12345], "waited", "again"],
    id: "mine",
  });
  expect(host.logs.filter((log) => log.text.includes("not settled well"))).toHaveLength(2);
});
