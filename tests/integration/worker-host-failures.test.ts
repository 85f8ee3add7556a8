import { expect, test } from "bun:test";
import { once } from "node:events";
import { rejection } from "../support/agent-peer.ts";
import { eventually, textOf, WorkerHostUnderTest } from "../support/worker-process.ts";

const source = `

interface Reason { why: string }

function deep(reason: Reason): never {
  throw new TypeError(reason.why);
}

const handlers = {
  "/throws": () => deep({ why: "secret words" }),
  "/rejects": async () => { await Bun.sleep(1); throw new Error("outer", { cause: new Error("inner") }); },
  "/throws-text": () => { throw "only text"; },
  "/nothing": () => undefined,
  "/number": () => 5,
  "/read": async () => { const r = new Response("x"); await r.text(); return r; },
  "/locked": () => { const r = new Response("xyz"); r.body.getReader(); return r; },
  "/headers": () => { const r = new Response("x"); for (let i = 0; i < 20; i++) r.headers.set("h" + i, "v".repeat(2000)); return r; },
  "/many": () => { const r = new Response("x"); for (let i = 0; i < 300; i++) r.headers.set("h" + i, "v"); return r; },
  "/error": () => Response.error(),
  "/switch": () => new Response(null, { status: 101 }),
  "/later": () => { setTimeout(() => deep({ why: "in a timer" }), 1); return new Response("ok"); },
  "/unhandled": () => { Promise.reject(new Error("nobody waits")); return new Response("ok"); },
  "/exit": () => { process.exit(7); return new Response("not reached"); },
  "/exit-later": () => { setTimeout(() => { process.exit(8); }, 1); return new Response("ok"); },
  "/ok": () => new Response("ok"),
  "/kill": () => process.kill(process.pid, "SIGKILL"),
};
export default {
  fetch: (request) => handlers[new URL(request.url).pathname](),
  task: (input) => {
    if (input === "throws") deep({ why: "the task's words" });
    if (input === "cyclic") { const a: { a?: unknown } = {}; a.a = a; return a; }
    if (input === "function") return () => 1;
    if (input === "large") return "x".repeat(1 << 20);
    if (input === "hangs") return new Promise(() => {});
    if (input === "nothing") return undefined;
    return input;
  },
};
`;

const get = (path: string) => ({ method: "GET", url: `http://w${path}` });

test("a handler's error is a 500 that tells nothing, and a log record that tells all", async () => {
  await using running = await WorkerHostUnderTest.running(source);
  const { client, host } = running;
  const expected: Record<string, RegExp> = {
    // The line and the column are the source's: the bundle has a map.
    "/throws": /TypeError: secret words\n.*deep \(.*worker\.ts:6:\d+\)/,
    "/rejects": /Error: outer[\s\S]*Caused by Error: inner/,
    "/throws-text": /only text/,
    "/nothing": /must give a Response, it gave nothing/,
    "/number": /it gave a value of type number/,
    "/read": /was read already/,
    "/locked": /was read already/,
    "/headers": /headers of \d+ bytes/,
    "/many": /30\d headers/,
    "/error": /status 0/,
    "/switch": /status 101/,
  };
  for (const [path, pattern] of Object.entries(expected)) {
    host.logs.length = 0;
    const answer = await client.fetch(get(path), { requestId: `id of ${path}` });
    const body = await textOf(answer);
    expect({ path, status: answer.status, body: JSON.parse(body) }).toEqual({
      path,
      status: 500,
      body: {
        type: "about:blank",
        title: "Internal Server Error",
        status: 500,
        detail: "The worker failed to answer the request",
        code: "WORKER_FAILED",
        requestId: `id of ${path}`,
        retryable: false,
      },
    });
    const length = String(Buffer.byteLength(body));
    expect(answer.headers).toEqual([
      ["content-type", "application/problem+json"],
      ["content-length", length],
    ]);
    expect(host.logs).toMatchObject([{ level: "error", stream: "stderr", requestId: `id of ${path}` }]);
    expect(host.logs[0]!.text).toMatch(pattern);
  }
  expect(await textOf(await client.fetch(get("/ok")))).toBe("ok");
  expect(host.faults).toEqual([]);
});

test("errors outside of handlers are reported with their stack and request, and the worker goes on", async () => {
  await using running = await WorkerHostUnderTest.running(source);
  const { client, host } = running;
  await textOf(await client.fetch(get("/later"), { requestId: "a" }));
  await eventually(() => host.faults.length === 1);
  await textOf(await client.fetch(get("/unhandled"), { requestId: "b" }));
  await eventually(() => host.faults.length === 2);
  expect(host.faults).toMatchObject([
    { kind: "uncaughtException", message: "in a timer", stack: expect.stringMatching(/worker\.ts:6:/) },
    { kind: "unhandledRejection", message: "nobody waits", stack: expect.stringMatching(/worker\.ts:\d+:/) },
  ]);
  expect(await textOf(await client.fetch(get("/ok")))).toBe("ok");
});

test("process.exit ends the worker, not the worker host", async () => {
  for (const [path, exitCode] of [
    ["/exit", 7],
    ["/exit-later", 8],
  ] as const) {
    await using running = await WorkerHostUnderTest.running(source);
    const { client, host } = running;
    const answer = await client.fetch(get(path), { requestId: "mine" });
    expect(answer.status).toBe(path === "/exit" ? 500 : 200);
    expect(await textOf(answer)).not.toContain("not reached");
    await eventually(() => host.faults.length === 1);
    expect(host.faults).toMatchObject([
      { kind: "exit", exitCode, requestId: "mine", stack: expect.stringContaining("worker.ts") },
    ]);
    expect(await rejection(client.fetch(get("/ok")))).toMatchObject({
      code: "AGENT_REFUSED",
      remote: "EXITED",
    });
    await client.ping();
    expect(host.logs).toEqual([]);
  }
});

test("a task's error has the worker's message and stack", async () => {
  await using running = await WorkerHostUnderTest.running(source);
  const { client } = running;
  const thrown = await rejection(client.task("throws"));
  expect(thrown).toMatchObject({
    code: "TASK_FAILED",
    message: "the task's words",
    workerStack: expect.stringMatching(/deep \(.*worker\.ts:6:/),
  });
  expect(thrown.stack).not.toContain("worker.ts:6:");
  for (const input of ["cyclic", "function"])
    expect(await rejection(client.task(input))).toMatchObject({ code: "TASK_FAILED" });
  expect(await rejection(client.task("large"))).toMatchObject({
    code: "TASK_FAILED",
    message:
      "The task's value takes 1048578 bytes as JSON: return at most 1048576, and send the rest elsewhere with fetch()",
  });
  expect(await rejection(client.task("hangs", { timeoutMs: 30 }))).toMatchObject({ code: "AGENT_TIMEOUT" });
  expect(await rejection(client.task("hangs", { signal: AbortSignal.timeout(30) }))).toMatchObject({
    code: "ABORTED",
  });
  expect(await client.task("nothing")).toBe(null);
  const large = { text: "ü".repeat(500_000), list: Array.from({ length: 1000 }, (_, i) => i) };
  expect(await client.task(large)).toEqual(large);
  expect(await rejection(client.task("x".repeat(8 << 20)))).toMatchObject({ code: "BAD_ARGUMENT" });
});

test("an upgrade to a WebSocket is refused by 501", async () => {
  await using running = await WorkerHostUnderTest.running(source);
  const headers = [
    ["Connection", "Upgrade"],
    ["Upgrade", "WebSocket"],
  ] as const;
  const answer = await running.client.fetch({ ...get("/ok"), headers });
  expect(answer.status).toBe(501);
  expect(JSON.parse(await textOf(answer))).toMatchObject({ status: 501, code: "UPGRADE_UNSUPPORTED" });
});

test("what cannot be sent is refused before anything is", async () => {
  await using running = await WorkerHostUnderTest.running(source);
  const { client } = running;
  const bad = [
    { method: "GET X", url: "http://w/" },
    { method: "GET", url: "/relative" },
    { method: "GET", url: `http://w/${"x".repeat(20_000)}` },
    { method: "GET", url: "http://w/", headers: [["a b", "c"]] as const },
    { method: "GET", url: "http://w/", headers: [["a", "c\r\nd: e"]] as const },
    { method: "GET", url: "http://w/", headers: [["a", "€"]] as const },
    { method: "GET", url: "http://w/", headers: Array.from({ length: 257 }, () => ["a", "b"] as const) },
    { method: "GET", url: "http://w/", headers: [["a", "b".repeat(33_000)]] as const },
  ];
  for (const request of bad)
    expect(await rejection(client.fetch(request))).toMatchObject({ code: "BAD_ARGUMENT" });
  expect(client.pending).toBe(0);
});

test("the end of the process is the end of the channel, for all that waits", async () => {
  await using running = await WorkerHostUnderTest.running(source);
  const { client, host } = running;
  const waiting = [client.task("hangs"), client.fetch(get("/kill"))].map(rejection);
  for (const error of await Promise.all(waiting)) expect(error).toMatchObject({ code: "AGENT_CLOSED" });
  expect((await client.closed).message).toContain("the test");
  await host.exited;
});

test("shutdown() ends the process when what runs has ended, or after the grace", async () => {
  for (const [input, atLeast] of [
    ["quick", 0],
    ["hangs", 100],
  ] as const) {
    await using running = await WorkerHostUnderTest.running(source);
    const { client, host } = running;
    const task = input === "hangs" ? rejection(client.task(input)) : undefined;
    const start = performance.now();
    const exit = once(host.process, "exit");
    await client.shutdown({ graceMs: 100 });
    expect(await exit).toEqual([0, null]);
    expect(performance.now() - start).toBeGreaterThanOrEqual(atLeast);
    if (task) expect(await task).toMatchObject({ code: "AGENT_CLOSED" });
  }
});
