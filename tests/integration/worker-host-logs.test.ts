import { expect, test } from "bun:test";
import { workerLimits } from "../../guest-agent/protocol/worker/mod.ts";
import { eventually, textOf, WorkerHostUnderTest } from "../support/worker-process.ts";

const source = `
console.log("while loading");
export default {
  async fetch(request) {
    const { pathname } = new URL(request.url);
    if (pathname === "/all") {
      console.log("one %s %d", "two", 3, { four: [5] });
      console.info("info"); console.debug("debug"); console.warn("warn"); console.error(new Error("an error"));
      console.group("group"); console.log("inside"); console.groupEnd();
      console.table([{ a: 1 }]);
      console.assert(1 === 2, "assertion");
      process.stdout.write("written\\n"); process.stderr.write(new TextEncoder().encode("to stderr"));
      await new Promise((resolve) => process.stdout.write("with callback", resolve));
    }
    if (pathname === "/nested") {
      await Bun.sleep(2); console.log("slept");
      setTimeout(() => console.log("afterwards"), 5);
    }
    if (pathname === "/long") console.log("x".repeat(100_000));
    if (pathname === "/flood") { for (let i = 0; i < 20_000; i++) console.log("line " + i + " " + "x".repeat(200)); }
    if (pathname === "/endless") { setInterval(() => { for (let i = 0; i < 2000; i++) console.log("y".repeat(500)); }, 1); }
    return new Response("ok");
  },
};
`;
const get = (path: string) => ({ method: "GET", url: `http://w${path}` });

test("what a worker writes comes with its level, its stream and its request", async () => {
  await using running = await WorkerHostUnderTest.running(source);
  const { client, host } = running;
  await textOf(await client.fetch(get("/all"), { requestId: "r1" }));
  const told = host.logs.map(({ level, stream, requestId, text }) => [level, stream, requestId, text]);
  expect(told.slice(0, 5)).toEqual([
    ["info", "stdout", undefined, "while loading"],
    ["info", "stdout", "r1", "one two 3 { four: [ 5 ] }"],
    ["info", "stdout", "r1", "info"],
    ["debug", "stdout", "r1", "debug"],
    ["warn", "stderr", "r1", "warn"],
  ]);
  const rest = told.slice(5);
  expect(rest[0]).toEqual([
    "error",
    "stderr",
    "r1",
    expect.stringMatching(/Error: an error\n[\s\S]*worker\.ts:\d/),
  ]);
  expect(rest.slice(1)).toEqual([
    ["info", "stdout", "r1", "group"],
    ["info", "stdout", "r1", "  inside"],
    ["info", "stdout", "r1", expect.stringContaining("index")],
    ["error", "stderr", "r1", expect.stringContaining("assertion")],
    ["info", "stdout", "r1", "written"],
    ["error", "stderr", "r1", "to stderr"],
    ["info", "stdout", "r1", "with callback"],
  ]);
  expect(Math.abs(host.logs[0]!.time - Date.now())).toBeLessThan(60_000);
  expect(host.stderr).toBe("");
});

test("records of requests at the same time, and after them, name their own", async () => {
  await using running = await WorkerHostUnderTest.running(source);
  const { client, host } = running;
  const ids = ["a", "b", "c", "d"];
  await Promise.all(ids.map(async (requestId) => textOf(await client.fetch(get("/nested"), { requestId }))));
  await eventually(() => host.logs.length >= 9);
  for (const text of ["slept", "afterwards"]) {
    const named = host.logs.filter((log) => log.text === text).map((log) => log.requestId);
    expect(named.sort()).toEqual(ids);
  }
});

test("a long record is cut, a flood is bounded, and the count of what is missing comes", async () => {
  await using running = await WorkerHostUnderTest.running(source);
  const { client, host } = running;
  await textOf(await client.fetch(get("/long")));
  expect(host.logs.at(-1)!.text).toHaveLength(workerLimits.LOG_TEXT_MAX);
  expect(host.logs.at(-1)!.text).toEndWith("x…");
  host.logs.length = 0;
  await textOf(await client.fetch(get("/flood")));
  await eventually(() => host.logs.some((log) => log.dropped > 0));
  const lines = host.logs.filter((log) => log.text.startsWith("line "));
  const dropped = host.logs.reduce((sum, log) => sum + log.dropped, 0);
  expect(lines.length).toBeGreaterThan(500);
  expect(lines.length + dropped).toBe(20_000);
  expect(host.logs.at(-1)).toMatchObject({ level: "warn", text: expect.stringContaining("dropped") });
});

test("endless logs neither take the channel nor memory, and are taken at the rate that was asked for", async () => {
  await using running = await WorkerHostUnderTest.running(source, { logBytesPerSecond: 100_000 });
  const { client, host } = running;
  await textOf(await client.fetch(get("/endless")));
  const start = performance.now();
  const resident = host.residentKiB;
  for (let i = 0; i < 20; i++) {
    await Bun.sleep(50);
    await client.ping({ timeoutMs: 5000 });
  }
  const seconds = (performance.now() - start) / 1000;
  const bytes = host.logs.reduce((sum, log) => sum + log.text.length, 0);
  expect(bytes).toBeLessThan(workerLimits.LOG_WINDOW + 1.5 * 100_000 * (seconds + 1));
  expect(host.residentKiB - resident).toBeLessThan(64 * 1024);
});
