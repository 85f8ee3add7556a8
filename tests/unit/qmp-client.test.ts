import { describe, expect, test } from "bun:test";
import { QmpClient, type QmpClientOptions, QmpError } from "../../qmp/mod.ts";
import { eventLine, ScriptedQmpPeer } from "../support/scripted-qmp-peer.ts";

/** A client that has shaken hands with a scripted peer. */
async function connected(options: QmpClientOptions = {}, capabilities?: readonly string[]) {
  const { peer, transport } = ScriptedQmpPeer.inMemory();
  const connecting = QmpClient.over(transport, options);
  await peer.handshake(capabilities);
  return { peer, client: await connecting };
}

/** What a promise was rejected with. */
async function rejection(promise: Promise<unknown>): Promise<QmpError> {
  const error = await promise.then(
    (value) => new Error(`Resolved with ${JSON.stringify(value)}`),
    (reason: unknown) => reason,
  );
  if (!(error instanceof QmpError)) throw error;
  return error;
}

describe("QmpClient.over()", () => {
  test("answers the greeting with qmp_capabilities, oob enabled where it is offered", async () => {
    const { peer, client } = await connected();
    expect(client.greeting.version.qemu).toEqual({ major: 10, minor: 0, micro: 2 });
    expect(client.greeting.capabilities).toEqual(["oob"]);
    expect(peer.received).toHaveLength(1);
    await client.close();
  });

  test("enables nothing when nothing is offered", async () => {
    const { peer, client } = await connected({}, []);
    expect(peer.received[0]).not.toHaveProperty("arguments");
    await client.close();
  });

  test("rejects with QMP_TIMEOUT and drops the connection when no greeting comes", async () => {
    const { peer, transport } = ScriptedQmpPeer.inMemory();
    const error = await rejection(QmpClient.over(transport, { timeoutMs: 1, stderr: () => "slow\n" }));
    expect(error.code).toBe("QMP_TIMEOUT");
    expect(error.message).toBe("QMP handshake took longer than 1 ms; its stderr ends with: slow");
    await peer.dropped;
  });

  test("rejects with QMP_CLOSED and the stderr when QEMU dies in the handshake", async () => {
    const { peer, transport } = ScriptedQmpPeer.inMemory();
    const connecting = rejection(QmpClient.over(transport, { stderr: () => "bad machine\n" }));
    peer.greet();
    await peer.expect("qmp_capabilities", { enable: ["oob"] });
    peer.drop();
    expect(await connecting).toMatchObject({
      code: "QMP_CLOSED",
      message: "QMP handshake failed: QEMU closed the connection; its stderr ends with: bad machine",
    });
  });

  test("rejects with QMP_COMMAND_FAILED and drops the connection when the negotiation is refused", async () => {
    const { peer, transport } = ScriptedQmpPeer.inMemory();
    const connecting = rejection(QmpClient.over(transport));
    peer.greet();
    peer.fail(await peer.expect("qmp_capabilities", { enable: ["oob"] }), "GenericError", "not today");
    expect(await connecting).toMatchObject({ code: "QMP_COMMAND_FAILED", qmpClass: "GenericError" });
    await peer.dropped;
  });

  test("rejects with ABORTED before or while it waits", async () => {
    const before = ScriptedQmpPeer.inMemory();
    const reason = new Error("no longer needed");
    const first = await rejection(QmpClient.over(before.transport, { signal: AbortSignal.abort(reason) }));
    expect(first).toMatchObject({ code: "ABORTED", cause: reason });
    await before.peer.dropped;

    const during = ScriptedQmpPeer.inMemory();
    const controller = new AbortController();
    const second = rejection(QmpClient.over(during.transport, { signal: controller.signal }));
    during.peer.greet();
    controller.abort();
    expect((await second).code).toBe("ABORTED");
    await during.peer.dropped;
  });

  test.each([
    ["a reply", '{"return":{},"id":1}\n'],
    ["an event", `${eventLine("STOP")}\n`],
    ["rubbish", "SSH-2.0-OpenSSH_9.2\n"],
  ])("rejects with QMP_PROTOCOL when %s comes before the greeting", async (_what, text) => {
    const { peer, transport } = ScriptedQmpPeer.inMemory();
    const connecting = rejection(QmpClient.over(transport));
    peer.send(text);
    expect((await connecting).code).toBe("QMP_PROTOCOL");
    await peer.dropped;
  });

  test("refuses a time limit that is none", async () => {
    const { transport } = ScriptedQmpPeer.inMemory();
    for (const timeoutMs of [0, -1, Number.NaN]) {
      await expect(QmpClient.over(transport, { timeoutMs })).rejects.toThrow(RangeError);
    }
  });

  test("holds events right behind the handshake for whoever subscribes first", async () => {
    const { peer, transport } = ScriptedQmpPeer.inMemory();
    const connecting = QmpClient.over(transport);
    peer.greet();
    const id = await peer.expect("qmp_capabilities", { enable: ["oob"] });
    peer.send(`${JSON.stringify({ return: {}, id })}\n${eventLine("STOP")}\n`);
    peer.event("RESUME");
    peer.drop();
    // Several layers of callers, each of which costs turns of the microtask queue.
    const client = await (async () => await (async () => await connecting)())();
    const both = Promise.all([client.expect("STOP"), client.expect("RESUME")]);
    expect((await both).map((one) => one.event)).toEqual(["STOP", "RESUME"]);
    expect((await client.closed).code).toBe("QMP_CLOSED");
  });
});

describe("execute()", () => {
  test("sends commands in the order of the calls, each with an id of its own", async () => {
    const { peer, client } = await connected();
    const status = client.execute("query-status");
    const migrate = client.execute("migrate-incoming", { uri: "unix:/x" });
    const oob = client.executeOob("migrate-recover", { uri: "unix:/y" });
    const ids = [
      await peer.expect("query-status"),
      await peer.expect("migrate-incoming", { uri: "unix:/x" }),
      await peer.expect("migrate-recover", { uri: "unix:/y" }, "exec-oob"),
    ];
    expect(new Set(ids).size).toBe(3);
    peer.reply(ids[2]);
    peer.reply(ids[1]);
    peer.reply(ids[0], { running: true, status: "running" });
    expect(await status).toEqual({ running: true, status: "running" });
    expect(await migrate).toEqual({});
    expect(await oob).toEqual({});
    await client.close();
  });

  test("reads replies in pieces, several in one chunk and on one line, and events between them", async () => {
    const { peer, client } = await connected();
    const seen: string[] = [];
    using _stop = client.on("STOP", (event) => seen.push(event.event));
    using _shutdown = client.on("SHUTDOWN", (event) => seen.push(event.data.reason));
    const results = [client.execute("stop"), client.execute("query-kvm"), client.execute("cont")];
    const [a, b, c] = [await peer.expect("stop"), await peer.expect("query-kvm"), await peer.expect("cont")];
    peer.send('{"return": {}, ');
    peer.send(`"id": ${a}}\r`);
    const shutdown = eventLine("SHUTDOWN", { guest: false, reason: "host-signal" });
    peer.send(
      `\n${eventLine("STOP")}\r\n\r\n{"return":{"enabled":false,"present":true},"id":${b}} ${shutdown}\r\n{`,
    );
    peer.send(`"return":{},"id":${c}}\n`);
    expect(await Promise.all(results)).toEqual([{}, { enabled: false, present: true }, {}]);
    expect(seen).toEqual(["STOP", "host-signal"]);
    await client.close();
  });

  test("rejects with QMP_COMMAND_FAILED, the class and the command; the next command works", async () => {
    const { peer, client } = await connected();
    const refused = rejection(client.execute("migrate-incoming", { uri: "" }));
    peer.fail(await peer.expect("migrate-incoming", { uri: "" }), "GenericError", "not now");
    expect(await refused).toMatchObject({
      code: "QMP_COMMAND_FAILED",
      qmpClass: "GenericError",
      command: "migrate-incoming",
      message: 'QMP command "migrate-incoming" failed: not now',
    });
    const next = client.execute("stop");
    peer.reply(await peer.expect("stop"));
    expect(await next).toEqual({});
    await client.close();
  });

  test("rejects only the command that timed out and drops its late answer", async () => {
    const { peer, client } = await connected();
    const slow = rejection(client.execute("stop", undefined, { timeoutMs: 1 }));
    const other = client.execute("query-status");
    expect(await slow).toMatchObject({ code: "QMP_TIMEOUT", command: "stop" });
    const late = await peer.expect("stop");
    const id = await peer.expect("query-status");
    peer.reply(late, { late: true });
    peer.fail(late, "GenericError", "late and twice");
    peer.reply(id, { running: false, status: "paused" });
    expect(await other).toEqual({ running: false, status: "paused" });
    await client.close();
  });

  test("rejects only the command that was aborted, with the signal's reason", async () => {
    const { peer, client } = await connected();
    const controller = new AbortController();
    const reason = new Error("changed my mind");
    const aborted = rejection(client.execute("cont", undefined, { signal: controller.signal }));
    const other = client.execute("stop");
    controller.abort(reason);
    expect(await aborted).toMatchObject({ code: "ABORTED", command: "cont", cause: reason });
    peer.reply(await peer.expect("cont"));
    peer.reply(await peer.expect("stop"));
    expect(await other).toEqual({});
    await client.close();
  });

  test("sends nothing when the signal is already aborted, the limit is none, or the arguments are no JSON", async () => {
    const { peer, client } = await connected();
    const error = await rejection(client.execute("cont", {}, { signal: AbortSignal.abort() }));
    expect(error.code).toBe("ABORTED");
    await expect(client.execute("cont", {}, { timeoutMs: 0 })).rejects.toThrow(RangeError);
    await expect(client.executeUntyped("cont", { size: 1n })).rejects.toThrow(TypeError);
    expect(peer.received.map((one) => one.execute)).toEqual(["qmp_capabilities"]);
    await client.close();
  });

  test("leaves no listener on a signal that outlives the command", async () => {
    const { peer, client } = await connected();
    const controller = new AbortController();
    let listeners = 0;
    const { signal } = controller;
    const add = signal.addEventListener.bind(signal);
    const remove = signal.removeEventListener.bind(signal);
    signal.addEventListener = (...args: Parameters<typeof add>) => {
      listeners++;
      add(...args);
    };
    signal.removeEventListener = (...args: Parameters<typeof remove>) => {
      listeners--;
      remove(...args);
    };
    const done = client.execute("stop", undefined, { signal });
    expect(listeners).toBe(1);
    peer.reply(await peer.expect("stop"));
    await done;
    expect(listeners).toBe(0);
    await client.close();
  });

  test("drops an answer to an id that it never gave", async () => {
    const { peer, client } = await connected();
    const done = client.execute("stop");
    const id = await peer.expect("stop");
    for (const unknown of [id + 1, 0, "stop", null, { id }]) peer.reply(unknown, { wrong: true });
    peer.reply(id);
    expect(await done).toEqual({});
    await client.close();
  });

  test("executeOob() rejects when the monitor has no out-of-band", async () => {
    const { peer, client } = await connected({}, []);
    const error = await rejection(client.executeOob("migrate-recover", { uri: "unix:/x" }));
    expect(error).toMatchObject({ code: "QMP_COMMAND_FAILED", command: "migrate-recover" });
    expect(peer.received).toHaveLength(1);
    await client.close();
  });
});

describe("a lost connection", () => {
  test("rejects all commands and event waits with QMP_CLOSED and QEMU's stderr", async () => {
    let stderr = "";
    const { peer, client } = await connected({ stderr: () => stderr });
    const waits = [client.execute("stop"), client.executeUntyped("foo"), client.expect("RESUME")].map(
      rejection,
    );
    peer.send('{"return": {}, "id"');
    stderr = "qemu: out of memory\n";
    peer.drop(new Error("read ECONNRESET"));
    const why =
      "failed: QEMU closed the connection (read ECONNRESET); its stderr ends with: qemu: out of memory";
    const errors = await Promise.all(waits);
    expect(errors.map((error) => [error.code, error.command, error.message])).toEqual([
      ["QMP_CLOSED", "stop", `QMP command "stop" ${why}`],
      ["QMP_CLOSED", "foo", `QMP command "foo" ${why}`],
      ["QMP_CLOSED", undefined, `Waiting for QMP event "RESUME" ${why}`],
    ]);
    expect((await client.closed).code).toBe("QMP_CLOSED");
    expect(await rejection(client.execute("cont"))).toMatchObject({ code: "QMP_CLOSED", command: "cont" });
    expect((await rejection(client.expect("STOP"))).code).toBe("QMP_CLOSED");
  });

  test("shows the end of a long stderr, and says when stderr cannot be read", async () => {
    const long = await connected({ stderr: () => `first ${"x".repeat(100_000)} last` });
    long.peer.drop();
    const { message } = await long.client.closed;
    expect(message.endsWith(" last")).toBe(true);
    expect(message).not.toContain("first");
    expect(message.length).toBeLessThan(5000);

    const broken = await connected({
      stderr: () => {
        throw new Error("pipe is closed");
      },
    });
    broken.peer.drop();
    expect((await broken.client.closed).message).toContain("its stderr cannot be read: pipe is closed");
  });

  test("is QMP_PROTOCOL for what was pending and QMP_CLOSED from then on", async () => {
    const { peer, client } = await connected();
    const pending = rejection(client.execute("stop"));
    const event = rejection(client.expect("STOP"));
    peer.send(`\u0000\u0001garbage\n${eventLine("STOP")}\n`);
    expect((await pending).code).toBe("QMP_PROTOCOL");
    expect((await event).code).toBe("QMP_PROTOCOL");
    expect(await client.closed).toMatchObject({
      code: "QMP_PROTOCOL",
      message: 'QMP connection failed: QEMU broke the protocol: Not a QMP message: "\\u0000\\u0001garbage"',
    });
    await peer.dropped;
    expect((await rejection(client.execute("cont"))).code).toBe("QMP_CLOSED");
  });

  test.each([
    [
      "an error without id",
      '{"error":{"class":"GenericError","desc":"JSON parse error"}}',
      "JSON parse error",
    ],
    ["a return without id", '{"return":{}}', "Reply without id"],
    [
      "a second greeting",
      '{"QMP":{"version":{"qemu":{"major":1,"minor":0,"micro":0},"package":""},"capabilities":[]}}',
      "Second greeting",
    ],
    ["a line above the cap", `{"return":"${"x".repeat(2000)}"}`, "longer than 1000 bytes"],
  ])("comes of %s", async (_what, line, words) => {
    const { peer, client } = await connected({ maxLineBytes: 1000 });
    const pending = rejection(client.execute("stop"));
    peer.send(`${line}\n`);
    const error = await pending;
    expect(error.code).toBe("QMP_PROTOCOL");
    expect(error.message).toContain(words);
    await peer.dropped;
  });

  test("cuts off a line above the cap that never ends", async () => {
    const { peer, client } = await connected({ maxLineBytes: 1000 });
    for (let i = 0; i < 11; i++) peer.send("x".repeat(100));
    expect((await client.closed).code).toBe("QMP_PROTOCOL");
    await peer.dropped;
  });
});

describe("close()", () => {
  test("rejects what is pending, tells the peer, and may be called twice", async () => {
    const { peer, client } = await connected({ stderr: () => "of no interest" });
    const pending = rejection(client.execute("stop"));
    await Promise.all([client.close(), client.close()]);
    expect(await pending).toMatchObject({
      code: "QMP_CLOSED",
      message: 'QMP command "stop" failed: this client closed the connection',
    });
    await peer.dropped;
    expect((await client.closed).message).toBe("QMP connection failed: this client closed the connection");
  });

  test("comes at the end of an `await using` block", async () => {
    const { peer, client } = await connected();
    {
      await using inner = client;
      expect(inner.greeting.version.package).toBe("scripted");
    }
    await peer.dropped;
  });
});
