import { describe, expect, test } from "bun:test";
import { spawnSync } from "node:child_process";
import { once } from "node:events";
import { createReadStream } from "node:fs";
import { createConnection } from "node:net";
import { join } from "node:path";
import { QmpClient, type QmpError } from "../../qmp/mod.ts";
import { BareQemu, NO_MACHINE, SMALL_PC } from "../support/qmp-qemu.ts";

function caught(promise: Promise<unknown>): Promise<QmpError> {
  return promise.then(
    (value) => {
      throw new Error(`Resolved with ${JSON.stringify(value)}`);
    },
    (error: QmpError) => error,
  );
}

describe("QmpClient with a real QEMU", () => {
  test("connect() takes the paused socket that QEMU opened", async () => {
    await using qemu = await BareQemu.start(NO_MACHINE);
    await using client = await QmpClient.connect(qemu.socket, { stderr: () => qemu.stderr() });
    expect(client.greeting.version.qemu).toEqual((await client.execute("query-version")).qemu);
    expect(await client.execute("query-status")).toMatchObject({ running: false, status: "prelaunch" });
  });

  test("connectTo() dials the socket that QEMU serves, again after a close()", async () => {
    await using qemu = await BareQemu.start(NO_MACHINE);
    // QEMU accepts on the served monitor from its main loop, so wait until that runs.
    await using _other = await QmpClient.connect(qemu.socket);
    for (let i = 0; i < 2; i++) {
      await using client = await QmpClient.connectTo(qemu.servedPath);
      expect((await client.execute("query-status")).running).toBe(false);
    }
  });

  test("connectTo() rejects with QMP_CLOSED when nobody listens, with ABORTED by its signal", async () => {
    await using qemu = await BareQemu.start(NO_MACHINE);
    const error = await caught(QmpClient.connectTo(join(qemu.directory, "missing")));
    expect(error.code).toBe("QMP_CLOSED");
    expect(error.message).toContain("missing");
    const signal = AbortSignal.abort();
    expect((await caught(QmpClient.connectTo(qemu.servedPath, { signal }))).code).toBe("ABORTED");
  });

  test("reads the whole schema, many commands at once, each with its own answer", async () => {
    await using qemu = await BareQemu.start(NO_MACHINE);
    await using client = await QmpClient.connect(qemu.socket);
    const schemas = Array.from({ length: 4 }, () => client.execute("query-qmp-schema"));
    const statuses = Array.from({ length: 50 }, () => client.execute("query-status"));
    for (const schema of await Promise.all(schemas)) expect(schema.length).toBeGreaterThan(1000);
    for (const status of await Promise.all(statuses)) expect(status.status).toBe("prelaunch");
  });

  test("expect() sees RESUME and STOP of cont and stop, and SHUTDOWN of quit", async () => {
    await using qemu = await BareQemu.start(SMALL_PC);
    await using client = await QmpClient.connect(qemu.socket);
    const resumed = client.expect("RESUME");
    await client.execute("cont");
    expect((await resumed).timestamp.seconds).toBeGreaterThan(0);
    expect(await client.execute("query-status")).toMatchObject({ running: true, status: "running" });
    const stopped = client.expect("STOP");
    await client.execute("stop");
    await stopped;
    expect((await client.execute("query-status")).status).toBe("paused");
    const shutdown = client.expect("SHUTDOWN", { filter: (event) => event.data.reason === "host-qmp-quit" });
    await client.execute("quit");
    expect((await shutdown).data.guest).toBe(false);
    expect((await client.closed).code).toBe("QMP_CLOSED");
    await qemu.exited();
  });

  test("gives QEMU's class and words when a command is refused", async () => {
    await using qemu = await BareQemu.start(NO_MACHINE);
    await using client = await QmpClient.connect(qemu.socket);
    expect(await caught(client.executeUntyped("no-such-command"))).toMatchObject({
      code: "QMP_COMMAND_FAILED",
      qmpClass: "CommandNotFound",
      command: "no-such-command",
    });
    const unexpected = await caught(client.executeUntyped("stop", { now: true }));
    expect(unexpected.qmpClass).toBe("GenericError");
    expect(unexpected.message).toContain("'now' is unexpected");
  });

  test("executeOob() is answered while QEMU's main loop hangs; a command in band times out alone", async () => {
    await using qemu = await BareQemu.start(NO_MACHINE);
    await using client = await QmpClient.connect(qemu.socket);
    const fifo = join(qemu.directory, "fifo");
    expect(spawnSync("mkfifo", [fifo]).status).toBe(0);
    // QEMU's main loop waits in open() until somebody reads the other end.
    const saved = client.execute("xen-save-devices-state", { filename: fifo });
    const late = client.execute("query-status", undefined, { timeoutMs: 20 });
    expect(await caught(late)).toMatchObject({ code: "QMP_TIMEOUT", command: "query-status" });
    const refused = await caught(client.executeOob("migrate-recover", { uri: "unix:/nowhere" }));
    expect(refused).toMatchObject({ code: "QMP_COMMAND_FAILED", qmpClass: "GenericError" });
    expect(refused.message).toContain("postcopy");

    let bytes = 0;
    for await (const chunk of createReadStream(fifo)) bytes += (chunk as Uint8Array).byteLength;
    expect(await saved).toEqual({});
    expect(bytes).toBeGreaterThan(0);
    expect((await client.execute("query-status")).status).toBe("prelaunch");
  });

  test("drops the answer that QEMU still owed to the former client of a served monitor", async () => {
    await using qemu = await BareQemu.start(NO_MACHINE);
    await using idle = await QmpClient.connect(qemu.socket);
    await idle.execute("query-status");
    const fifo = join(qemu.directory, "fifo");
    expect(spawnSync("mkfifo", [fifo]).status).toBe(0);
    const former = await QmpClient.connectTo(qemu.servedPath);
    const lost = caught(former.execute("xen-save-devices-state", { filename: fifo }));
    // Answered out of band: so QEMU has read the command before.
    await caught(former.executeOob("migrate-recover", { uri: "unix:/nowhere" }));
    await former.close();
    expect((await lost).code).toBe("QMP_CLOSED");

    const socket = createConnection({ path: qemu.servedPath });
    await once(socket, "readable");
    const connecting = QmpClient.connect(socket);
    for await (const _chunk of createReadStream(fifo));
    await using client = await connecting;
    expect((await client.execute("query-version")).qemu).toEqual(client.greeting.version.qemu);
  });

  test("rejects everything pending when QEMU is killed", async () => {
    await using qemu = await BareQemu.start(NO_MACHINE);
    await using client = await QmpClient.connect(qemu.socket, { stderr: () => "last words" });
    const fifo = join(qemu.directory, "fifo");
    expect(spawnSync("mkfifo", [fifo]).status).toBe(0);
    const pending = [
      client.execute("xen-save-devices-state", { filename: fifo }, { timeoutMs: Infinity }),
      client.execute("query-status"),
      client.expect("RESUME", { timeoutMs: Infinity }),
    ].map(caught);
    qemu.process.kill("SIGKILL");
    for (const error of await Promise.all(pending)) {
      expect(error.code).toBe("QMP_CLOSED");
      expect(error.message).toContain("last words");
    }
  });

  test("connect() says in QEMU's words why it died while it built its machine", async () => {
    await using qemu = await BareQemu.start([...SMALL_PC, "-device", "no-such-device"]);
    const error = await caught(QmpClient.connect(qemu.socket, { stderr: () => qemu.stderr() }));
    expect(error.code).toBe("QMP_CLOSED");
    expect(error.message).toContain("'no-such-device' is not a valid device model name");
  });
});
