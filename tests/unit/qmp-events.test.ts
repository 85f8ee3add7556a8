import { describe, expect, test } from "bun:test";
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { setImmediate as nextTurn } from "node:timers/promises";
import { QmpClient, type QmpError } from "../../qmp/mod.ts";
import { ScriptedQmpPeer } from "../support/scripted-qmp-peer.ts";

async function connected() {
  const { peer, transport } = ScriptedQmpPeer.inMemory();
  const connecting = QmpClient.over(transport);
  await peer.handshake();
  const client = await connecting;
  // What comes right behind the handshake is held for a turn; from here on events come at once.
  await nextTurn();
  return { peer, client };
}

/** Runs a program of its own, where an unhandled rejection ends the process, and returns its output. */
function runAlone(body: string): { status: number | null; stdout: string; stderr: string } {
  const urlOf = (path: string): string => JSON.stringify(new URL(path, import.meta.url).href);
  const program = `
    import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { setImmediate as nextTurn } from "node:timers/promises";
    import { QmpClient } from ${urlOf("../../qmp/mod.ts")};
    import { ScriptedQmpPeer } from ${urlOf("../support/scripted-qmp-peer.ts")};
    const { peer, transport } = ScriptedQmpPeer.inMemory();
    const connecting = QmpClient.over(transport);
    await peer.handshake();
    const client = await connecting;
    await nextTurn();
    ${body}
  `;
  const directory = mkdtempSync(join(tmpdir(), "flurry-qmp-"));
  try {
    const file = join(directory, "alone.ts");
    writeFileSync(file, program);
    const flags = "deno" in process.versions ? ["-A", "--no-check", "--quiet"] : [];
    return spawnSync(process.execPath, ["run", ...flags, file], { encoding: "utf8" });
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

describe("expect()", () => {
  test("listens from the call on, before it is awaited", async () => {
    const { peer, client } = await connected();
    const resumed = client.expect("RESUME");
    peer.event("RESUME");
    peer.event("RESUME");
    expect(await resumed).toEqual({
      event: "RESUME",
      data: undefined,
      timestamp: { seconds: 1, microseconds: 2 },
    } as never);
    await client.close();
  });

  test("takes the first event that the filter wants, and no other name", async () => {
    const { peer, client } = await connected();
    const completed = client.expect("MIGRATION", { filter: (event) => event.data.status === "completed" });
    peer.event("MIGRATION", { status: "active" });
    peer.event("STOP");
    peer.event("MIGRATION", { status: "completed" });
    peer.event("MIGRATION", { status: "failed" });
    expect((await completed).data.status).toBe("completed");
    await client.close();
  });

  test("gives one event to everybody who waits for it", async () => {
    const { peer, client } = await connected();
    const waits = [client.expect("STOP"), client.expect("STOP")];
    peer.event("STOP");
    expect((await Promise.all(waits)).map((event) => event.event)).toEqual(["STOP", "STOP"]);
    await client.close();
  });

  test("rejects with what the filter threw; the connection lives on", async () => {
    const { peer, client } = await connected();
    const bug = new Error("bug in the filter");
    const wait = client.expect("STOP", {
      filter: () => {
        throw bug;
      },
    });
    const healthy = client.expect("STOP");
    peer.event("STOP");
    expect(await wait.catch((error: unknown) => error)).toBe(bug);
    expect((await healthy).event).toBe("STOP");
    await client.close();
  });

  test("rejects with QMP_TIMEOUT, ABORTED or, once disposed, ABORTED", async () => {
    const { peer, client } = await connected();
    const codeOf = (wait: Promise<unknown>) => wait.catch((error: QmpError) => error.code);
    expect(await codeOf(client.expect("STOP", { timeoutMs: 1 }))).toBe("QMP_TIMEOUT");
    const controller = new AbortController();
    const aborted = client.expect("STOP", { signal: controller.signal });
    controller.abort();
    expect(await codeOf(aborted)).toBe("ABORTED");
    expect(await codeOf(client.expect("STOP", { signal: AbortSignal.abort() }))).toBe("ABORTED");
    let disposed: Promise<unknown>;
    {
      using wait = client.expect("STOP");
      disposed = wait;
    }
    peer.event("STOP");
    expect(await codeOf(disposed)).toBe("ABORTED");
    expect(() => client.expect("STOP", { timeoutMs: 0 })).toThrow(RangeError);
    await client.close();
  });

  test("keeps its event when it is disposed afterwards", async () => {
    const { peer, client } = await connected();
    const wait = client.expect("STOP");
    peer.event("STOP");
    wait[Symbol.dispose]();
    expect((await wait).event).toBe("STOP");
    await client.close();
  });

  test("never becomes an unhandled rejection when nobody awaits it", () => {
    const run = runAlone(`
      client.expect("STOP", { timeoutMs: 1 });
      client.expect("STOP", { signal: AbortSignal.abort() });
      client.expect("STOP", { filter: () => { throw new Error("bug"); } });
      { using given = client.expect("STOP"); }
      await client.expect("RESET", { timeoutMs: 5 }).catch(() => undefined);
      client.expect("RESUME");
      peer.event("STOP");
      peer.drop();
      await client.closed;
      client.expect("RESUME");
      await nextTurn();
      console.log("survived");
    `);
    expect(run).toMatchObject({ status: 0, stdout: "survived\n", stderr: "" });
  });
});

describe("on()", () => {
  test("calls the handler for each event until disposed, in the order of subscription", async () => {
    const { peer, client } = await connected();
    const seen: string[] = [];
    const first = client.on("STOP", () => seen.push("first"));
    using _second = client.on("STOP", () => seen.push("second"));
    peer.event("STOP");
    first[Symbol.dispose]();
    peer.event("STOP");
    peer.event("RESUME");
    expect(seen).toEqual(["first", "second", "second"]);
    await client.close();
  });

  test("lets a handler subscribe and unsubscribe while it is called", async () => {
    const { peer, client } = await connected();
    const seen: string[] = [];
    const outer = client.on("STOP", () => {
      seen.push("outer");
      outer[Symbol.dispose]();
      client.on("STOP", () => seen.push("inner"));
    });
    peer.event("STOP");
    expect(seen).toEqual(["outer"]);
    peer.event("STOP");
    expect(seen).toEqual(["outer", "inner"]);
    await client.close();
  });

  test("surfaces what a handler throws; the other handlers and the client go on", () => {
    const run = runAlone(`
      process.on("uncaughtException", (error) => console.log("uncaught:", error.message));
      client.on("STOP", () => { throw new Error("bug in the handler"); });
      client.on("STOP", () => console.log("second handler"));
      const done = client.execute("stop");
      const id = await peer.expect("stop");
      peer.event("STOP");
      peer.reply(id);
      console.log(JSON.stringify(await done));
      await nextTurn();
    `);
    expect(run.stdout.split("\n").sort()).toEqual([
      "",
      "second handler",
      "uncaught: bug in the handler",
      "{}",
    ]);
    expect(run.status).toBe(0);
  });
});

describe("events()", () => {
  test("yields all events in order, named or not, and ends with our close()", async () => {
    const { peer, client } = await connected();
    const all = client.events();
    const stops = client.events("STOP");
    peer.event("STOP");
    peer.event("JOB_STATUS_CHANGE", { status: "created", id: "j" });
    peer.event("STOP");
    await client.close();
    const names: string[] = [];
    for await (const event of all) names.push(event.event);
    expect(names).toEqual(["STOP", "JOB_STATUS_CHANGE", "STOP"]);
    let count = 0;
    for await (const event of stops) count += event.event === "STOP" ? 1 : 100;
    expect(count).toBe(2);
  });

  test("wakes a reader that waits, and throws once when the connection is lost", async () => {
    const { peer, client } = await connected();
    const reader = client.events("STOP");
    const next = reader.next();
    peer.event("STOP");
    expect((await next).value?.event).toBe("STOP");
    const lost = reader.next();
    peer.drop();
    expect(await lost.catch((error: QmpError) => error.code)).toBe("QMP_CLOSED");
    expect(await reader.next()).toEqual({ value: undefined, done: true });
    expect(
      await client
        .events()
        .next()
        .catch((error: QmpError) => error.code),
    ).toBe("QMP_CLOSED");
  });

  test("gives a reader that fell behind what is held and then a RangeError", async () => {
    const { peer, client } = await connected();
    const reader = client.events("STOP", { capacity: 2 });
    for (let i = 0; i < 5; i++) peer.event("STOP");
    expect((await reader.next()).done).toBe(false);
    expect((await reader.next()).done).toBe(false);
    await expect(reader.next()).rejects.toThrow(new RangeError("Cannot hold more than 2 unread QMP events"));
    await client.close();
  });

  test("stops listening when the loop is left, the stream is disposed, or the signal fires", async () => {
    const { peer, client } = await connected();
    const left = client.events("STOP", { capacity: 1 });
    peer.event("STOP");
    for await (const _event of left) break;
    // A subscription that still listened would overflow and throw.
    peer.event("STOP");
    peer.event("STOP");
    expect(await left.next()).toEqual({ value: undefined, done: true });
    {
      await using disposed = client.events("STOP");
      peer.event("STOP");
      expect((await disposed.next()).done).toBe(false);
    }
    // Ended by a handler of the very event that would be its next.
    const readers: AsyncIterator<unknown>[] = [];
    using _ender = client.on("STOP", () => {
      for (const reader of readers) void reader.return?.();
    });
    readers.push(client.events("STOP"));
    peer.event("STOP");
    expect(await readers[0]?.next()).toEqual({ value: undefined, done: true });
    const controller = new AbortController();
    const aborted = client.events("STOP", { signal: controller.signal });
    const next = aborted.next();
    controller.abort();
    expect(await next.catch((error: QmpError) => error.code)).toBe("ABORTED");
    await client.close();
  });
});
