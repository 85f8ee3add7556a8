import { describe, expect, test } from "bun:test";
import { once } from "node:events";
import { connect, type Socket } from "node:net";
import type { Job, Page } from "../../runtime/api/mod.ts";
import { eventually, GatewaySandbox, jobOf, problemFrom } from "../support/gateway-sandbox.ts";

const HEAD = JSON.stringify({ worker: { image: "base", command: ["cat"] } });

/** Begins a request whose body stays unfinished. */
function begin(
  gateway: GatewaySandbox,
  type: string,
  body: string,
  key?: string,
): { socket: Socket; answer: Promise<string> } {
  const socket = connect(gateway.port, "127.0.0.1");
  const lines = [
    "POST /v1/jobs HTTP/1.1",
    `Host: 127.0.0.1:${gateway.port}`,
    `Content-Type: ${type}`,
    "Content-Length: 100000",
    ...(key === undefined ? [] : [`Authorization: Bearer ${key}`]),
  ];
  socket.write(`${lines.join("\r\n")}\r\n\r\n${body}`);
  const { promise: answer, resolve } = Promise.withResolvers<string>();
  let text = "";
  socket.on("data", (chunk) => {
    text += String(chunk);
    if (text.includes("\r\n\r\n")) resolve(text);
  });
  socket.on("error", (error) => resolve(String(error)));
  socket.on("close", () => resolve(text));
  return { socket, answer };
}

async function statusOf(gateway: GatewaySandbox, job: object, key?: string): Promise<number> {
  const answer = await gateway.fetch("/v1/jobs", { method: "POST", json: job, key });
  await answer.text();
  return answer.status;
}

describe("a body that does not arrive", () => {
  for (const [type, sent] of [
    ["application/json", '{"worker":'],
    ["application/x-ndjson", `${HEAD}\n1\n2\n`],
  ] as const) {
    test(`is given up after a silence: ${type}`, async () => {
      await using gateway = await GatewaySandbox.open({ limits: { bodySilenceMs: 50 } });
      const { socket, answer } = begin(gateway, type, sent);
      expect(await answer).toMatch(/^HTTP\/1\.1 408 /);
      socket.destroy();
      expect((await gateway.json<Page<Job>>("/v1/jobs")).items).toEqual([]);
      const { store } = gateway.context;
      expect(await store.jobs.load()).toEqual({ activeJobs: 0, waitingTasks: 0, runningTasks: 0 });
    });
  }

  test("is given up in the end, however busy its sender is", async () => {
    await using gateway = await GatewaySandbox.open({ limits: { bodyMs: 100 } });
    const { socket, answer } = begin(gateway, "application/json", "{");
    const timer = setInterval(() => socket.write(" "), 5);
    expect(await answer).toMatch(/^HTTP\/1\.1 408 /);
    clearInterval(timer);
    socket.destroy();
  });

  test("counts as a job of its key until it is given up", async () => {
    await using gateway = await GatewaySandbox.open({ limits: { bodySilenceMs: 300 } });
    await gateway.key(["admin"]);
    const { key } = await gateway.key(["submit"], { activeJobs: 1 });
    const { socket, answer } = begin(gateway, "application/x-ndjson", `${HEAD}\n1\n`, key);
    expect(await answer).toMatch(/^HTTP\/1\.1 408 /);
    socket.destroy();
    expect(await statusOf(gateway, jobOf(1), key)).toBe(202);
    expect(await statusOf(gateway, jobOf(1), key)).toBe(429);
  });
});

describe("bodies of JSON", () => {
  test("hold no more memory together than they may", async () => {
    await using gateway = await GatewaySandbox.open({ limits: { bodiesBytes: 1000 } });
    const job = jobOf(1, { name: "x".repeat(150) });
    const { socket } = begin(gateway, "application/json", `{"worker":"${"x".repeat(900)}`);
    await once(socket, "connect");
    // What was sent before these has arrived when they are answered.
    for (let n = 0; n < 3; n++) await gateway.json<object>("/healthz");
    const refused = await gateway.fetch("/v1/jobs", { method: "POST", json: job });
    expect(refused.headers.get("retry-after")).toBe("1");
    expect((await problemFrom(refused)).code).toBe("LIMIT_REACHED");
    socket.destroy();
    await eventually(async () => (await statusOf(gateway, job)) === 202);
    // A large one alone is measured by its own limit.
    await gateway.submit(jobOf(1, { env: { A: "x".repeat(5000) } }));
  });

  test("are not read of who is nobody", async () => {
    await using gateway = await GatewaySandbox.open();
    await gateway.key(["admin"]);
    const headers = { "content-type": "application/json" };
    for (const path of ["/healthz", "/docs", "/v1/jobs"]) {
      // One that was read would be refused for what it is.
      const { code } = await gateway.problem(path, { method: "POST", body: "{no json", headers });
      expect(["METHOD_NOT_ALLOWED", "UNAUTHENTICATED"]).toContain(code);
    }
  });
});
