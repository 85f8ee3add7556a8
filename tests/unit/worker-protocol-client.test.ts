import { describe, expect, test } from "bun:test";
import { setTimeout as sleep } from "node:timers/promises";
import { limits, streams } from "../../guest-agent/protocol/constants.ts";
import { type WorkerLog, workerLimits } from "../../guest-agent/protocol/worker/mod.ts";
import { rejection } from "../support/agent-peer.ts";
import { ScriptedWorkerHost } from "../support/worker-peer.ts";

const hello = { protocol: 3, runtime: "bun 1", pid: 1, loaded: false };
const get = { method: "GET", url: "http://w/" };
const log = { stream: "stdout", level: "info", text: "x", time: 1 };
const fork = { vm: { id: "v", index: 1, generation: 1 }, env: {}, secrets: {} };

describe("WorkerClient", () => {
  test("hello() refuses a worker host of another version by both numbers", async () => {
    await using guest = await ScriptedWorkerHost.start();
    const answer = rejection(guest.client.hello());
    const { id } = await guest.expect("HELLO");
    guest.greet();
    guest.send("HELLO", id, { ...hello, protocol: 1 });
    expect(await answer).toMatchObject({
      code: "AGENT_PROTOCOL",
      message: expect.stringMatching(/version 1.*version 3/),
    });
  });

  test("forked() is one message, and the first one of a session", async () => {
    await using guest = await ScriptedWorkerHost.start();
    const ready = guest.client.forked({ ...fork, env: { A: "1" }, secrets: { B: "2" } });
    expect(await guest.expect("FORKED")).toMatchObject({
      protocol: 3,
      vm: fork.vm,
      env: { A: "1" },
      secrets: { B: "2" },
    });
    guest.greet();
    guest.send("READY", 1, { ms: 3 });
    expect(await ready).toEqual({ ms: 3 });
  });

  test("an error of the guest is AGENT_REFUSED with the guest's code, and of a task TASK_FAILED", async () => {
    await using guest = await ScriptedWorkerHost.start();
    guest.greet();
    const loading = rejection(guest.client.load({ name: "x" }));
    guest.send("ERROR", (await guest.expect("LOAD")).id, { code: "LOAD_FAILED", message: "m", stack: "s" });
    expect(await loading).toMatchObject({ code: "AGENT_REFUSED", remote: "LOAD_FAILED", workerStack: "s" });
    const task = rejection(guest.client.task(1));
    guest.send("ERROR", (await guest.expect("TASK")).id, { code: "WORKER_FAILED", message: "m", stack: "s" });
    expect(await task).toMatchObject({ code: "TASK_FAILED", message: "m", workerStack: "s" });
  });

  test("rejects everything that waits, with the reason and the process's last words", async () => {
    await using guest = await ScriptedWorkerHost.start({
      name: "child 7",
      stderr: () => "qemu: out of luck\n",
    });
    guest.greet();
    const response = guest.client.fetch(get);
    const { id } = await guest.expect("REQUEST");
    guest.send("RESPONSE", id, { status: 200, headers: [], body: true });
    const { body, done } = await response;
    const waiting = [
      body.getReader().read(),
      done,
      guest.client.fetch(get),
      guest.client.task(1),
      guest.client.scheduled({ cron: "x", time: 1 }),
      guest.client.ping(),
      guest.client.warm(),
      guest.client.forked(fork),
    ].map(rejection);
    guest.socket.destroy();
    for (const error of await Promise.all(waiting)) {
      expect(error).toMatchObject({ name: "WorkerError", code: "AGENT_CLOSED" });
      expect(error.message).toContain("child 7");
      expect(error.message).toContain("out of luck");
    }
    expect(await rejection(guest.client.quiesce())).toMatchObject({ code: "AGENT_CLOSED" });
    expect(guest.client.pending).toBe(0);
  });

  test("still hands out what had arrived before the channel died", async () => {
    await using guest = await ScriptedWorkerHost.start();
    guest.greet();
    const response = guest.client.fetch(get);
    const { id } = await guest.expect("REQUEST");
    guest.send("RESPONSE", id, { status: 200, headers: [], body: true });
    guest.data(id, Buffer.from("last words"));
    guest.socket.end();
    const reader = (await response).body.getReader();
    expect(Buffer.from((await reader.read()).value!).toString()).toBe("last words");
    expect(await rejection(reader.read())).toMatchObject({ code: "AGENT_CLOSED" });
  });

  test("headers keep their order, their repetitions and their bytes", async () => {
    await using guest = await ScriptedWorkerHost.start();
    guest.greet();
    const headers = [
      ["set-cookie", "a=1"],
      ["x", "caf\u00e9\t\u00ff"],
      ["set-cookie", "b=2"],
      ["X", ""],
    ] as const;
    const response = guest.client.fetch({ ...get, headers });
    const request = await guest.expect("REQUEST");
    expect(request.headers).toEqual(headers);
    guest.send("RESPONSE", request.id, { status: 200, headers });
    expect((await response).headers).toEqual(headers);
  });

  test("says nothing between QUIESCE and the next call, whatever credit it owes", async () => {
    const logs: WorkerLog[] = [];
    await using guest = await ScriptedWorkerHost.start({ onLog: (record) => logs.push(record) });
    guest.greet();
    const quiet = guest.client.quiesce();
    const { id } = await guest.expect("QUIESCE");
    for (let i = 0; i < 40; i++) guest.send("LOG", 0, { ...log, text: "x".repeat(4000) });
    guest.send("QUIESCED", id);
    await quiet;
    await sleep(150);
    expect(logs).toHaveLength(40);
    expect(guest.isIdle).toBe(true);
    const ping = guest.client.ping();
    guest.send("PONG", (await guest.expect("PING")).id);
    await ping;
    expect((await guest.expect("CREDIT")).bytes).toBeGreaterThan(0);
  });

  test("quiesce() is refused here while a request runs", async () => {
    await using guest = await ScriptedWorkerHost.start();
    const response = rejection(guest.client.fetch(get));
    await guest.expect("REQUEST");
    expect(await rejection(guest.client.quiesce())).toMatchObject({ code: "AGENT_REFUSED", remote: "BUSY" });
    expect(guest.isIdle).toBe(true);
    guest.client.close();
    expect(await response).toMatchObject({ code: "AGENT_CLOSED" });
  });

  test("gives an answer its time anew with each MiB of the body that the worker takes, and no longer", async () => {
    await using guest = await ScriptedWorkerHost.start();
    guest.greet();
    const url = "http://w/";
    const post = () =>
      guest.client.fetch({ method: "POST", url, body: new Uint8Array(4 << 20) }, { timeoutMs: 1000 });
    /** Takes all of it, with pauses that are longer than that together. */
    const take = async (pauseMs: number): Promise<number> => {
      const { id } = await guest.expect("REQUEST");
      for (let taken = 0; taken < 4 << 20; ) {
        const { data } = await guest.expect("DATA");
        if (taken >> 20 < (taken + data.length) >> 20) await sleep(pauseMs);
        taken += data.length;
        guest.send("CREDIT", id, { s: streams.IN, n: data.length });
      }
      await guest.expect("END");
      return id;
    };
    const slow = post();
    const began = performance.now();
    const id = await take(300);
    expect(performance.now() - began).toBeGreaterThan(1000);
    guest.send("RESPONSE", id, { status: 200, headers: [], body: false });
    expect((await slow).status).toBe(200);
    const never = rejection(post());
    await take(0);
    expect(await never).toMatchObject({ code: "AGENT_TIMEOUT" });
  });

  test("a request that was given up keeps its id until the guest is done with it", async () => {
    await using guest = await ScriptedWorkerHost.start({ maxRequests: 1 });
    guest.greet();
    expect(await rejection(guest.client.fetch(get, { timeoutMs: 1 }))).toMatchObject({
      code: "AGENT_TIMEOUT",
    });
    const { id } = await guest.expect("REQUEST");
    await guest.expect("CANCEL");
    expect(await rejection(guest.client.fetch(get))).toMatchObject({ remote: "LIMIT" });
    guest.send("RESPONSE", id, { status: 200, headers: [], body: true }); // it crossed the cancel
    guest.data(id, Buffer.from("too late"));
    guest.send("DONE", id);
    while (guest.client.pending > 0) await sleep(1);
    const next = rejection(guest.client.fetch(get));
    expect((await guest.expect("REQUEST")).id).not.toBe(id);
    guest.client.close();
    await next;
  });

  test("sends nothing for a signal that has fired", async () => {
    await using guest = await ScriptedWorkerHost.start();
    for (const asked of [
      guest.client.fetch(get, { signal: AbortSignal.abort() }),
      guest.client.task(1, { signal: AbortSignal.abort() }),
      guest.client.ping({ signal: AbortSignal.abort() }),
    ])
      expect(await rejection(asked)).toMatchObject({ code: "ABORTED" });
    await sleep(5);
    expect(guest.received).toBe(0);
    expect(guest.client.pending).toBe(0);
  });

  test("gives credit back no faster than the rate of logs that was asked for", async () => {
    await using guest = await ScriptedWorkerHost.start({ logBytesPerSecond: 200_000 });
    guest.greet();
    for (let i = 0; i < 60; i++) guest.send("LOG", 0, { ...log, text: "x".repeat(4000) });
    const start = performance.now();
    let given = 0;
    while (given < 100_000) given += (await guest.expect("CREDIT")).bytes;
    expect(performance.now() - start).toBeGreaterThan(400);
  });
});

describe("WorkerClient ends the channel of a guest that", () => {
  const chunk = new Uint8Array(limits.CHUNK_MAX);
  const response = { status: 200, headers: [], body: true };
  /** What the guest says to the request with this id. */
  const lies: Record<string, (guest: ScriptedWorkerHost, id: number) => void> = {
    "sends more of a body than its credit": (guest, id) => {
      guest.send("RESPONSE", id, response);
      for (let sent = 0; sent <= limits.WINDOW_TO_HOST; sent += chunk.length) guest.data(id, chunk);
    },
    "sends a body before its head": (guest, id) => guest.data(id, chunk),
    "ends a body before its head": (guest, id) => guest.send("END", id, { s: 1 }),
    "sends two heads": (guest, id) => {
      guest.send("RESPONSE", id, response);
      guest.send("RESPONSE", id, response);
    },
    "sends data after the end": (guest, id) => {
      guest.send("RESPONSE", id, response);
      guest.send("END", id, { s: 1 });
      guest.data(id, chunk);
    },
    "ends a body twice": (guest, id) => {
      guest.send("RESPONSE", id, response);
      guest.send("END", id, { s: 1 });
      guest.send("END", id, { s: 1 });
    },
    "is done before it has answered": (guest, id) => guest.send("DONE", id),
    "is done with a body half-way": (guest, id) => {
      guest.send("RESPONSE", id, response);
      guest.send("DONE", id);
    },
    "gives more credit than a window": (guest, id) => guest.send("CREDIT", id, { s: 0, n: 1 }),
    "writes to the request's body": (guest, id) => guest.send("END", id, { s: 0 }),
    "answers with the wrong kind": (guest, id) => guest.send("PONG", id),
    "has no such status": (guest, id) => guest.send("RESPONSE", id, { ...response, status: 700 }),
    "switches protocols": (guest, id) => guest.send("RESPONSE", id, { ...response, status: 101 }),
    "splits a response": (guest, id) =>
      guest.send("RESPONSE", id, { ...response, headers: [["a", "b\r\n\r\nHTTP/1.1 200"]] }),
    "names a header badly": (guest, id) =>
      guest.send("RESPONSE", id, { ...response, headers: [["a:b", "c"]] }),
    "has too many headers": (guest, id) =>
      guest.send("RESPONSE", id, { ...response, headers: Array.from({ length: 257 }, () => ["a", "b"]) }),
    "has headers that are too long": (guest, id) =>
      guest.send("RESPONSE", id, {
        ...response,
        headers: [["a", "b".repeat(workerLimits.HEADER_BYTES_MAX)]],
      }),
    "has headers that are none": (guest, id) => guest.send("RESPONSE", id, { ...response, headers: [["a"]] }),
    "sends more log than its credit": (guest) => {
      for (let i = 0; i < 100; i++) guest.send("LOG", 0, { ...log, text: "x".repeat(8000) });
    },
    "sends more faults than its credit": (guest) => {
      const fault = { kind: "exit", message: "x".repeat(2000), stack: "y".repeat(16_000), time: 1 };
      for (let i = 0; i < 20; i++) guest.send("FAULT", 0, fault);
    },
    "sends a record that is too long": (guest) =>
      guest.send("LOG", 0, { ...log, text: "x".repeat(workerLimits.LOG_TEXT_MAX + 1) }),
    "logs at no level": (guest) => guest.send("LOG", 0, { ...log, level: "loud" }),
    "could not read a frame": (guest) => guest.send("ERROR", 0, { code: "BAD_MESSAGE", message: "m" }),
  };
  for (const [what, say] of Object.entries(lies)) {
    test(what, async () => {
      await using guest = await ScriptedWorkerHost.start();
      guest.greet();
      const asked = guest.client.fetch(get);
      asked.catch(() => undefined);
      say(guest, (await guest.expect("REQUEST")).id);
      expect(await guest.client.closed).toMatchObject({ name: "WorkerError", code: "AGENT_PROTOCOL" });
    });
  }
});
