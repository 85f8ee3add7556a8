import { describe, expect, test } from "bun:test";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { QmpClient, type QmpError } from "../../qmp/mod.ts";
import { ScriptedQmpPeer } from "../support/scripted-qmp-peer.ts";

/** A scripted peer that connected to a listener of ours, and our end of the connection. */
async function socketPair(pauseOnConnect: boolean, allowHalfOpen = false) {
  const directory = mkdtempSync(join(tmpdir(), "flurry-qmp-"));
  const path = join(directory, "qmp");
  const server = createServer({ pauseOnConnect, allowHalfOpen });
  await once(server.listen(path), "listening");
  const accepted = once(server, "connection") as Promise<[Socket]>;
  const peer = await ScriptedQmpPeer.dial(path);
  const [socket] = await accepted;
  server.close();
  rmSync(directory, { recursive: true, force: true });
  return { peer, socket };
}

function codeOf(promise: Promise<unknown>): Promise<string> {
  return promise.then(
    () => "resolved",
    (error: QmpError) => error.code,
  );
}

describe("QmpClient.connect()", () => {
  test.each([[true], [false]])("speaks over an accepted socket, paused: %p", async (paused) => {
    const { peer, socket } = await socketPair(paused);
    using _peer = peer;
    const connecting = QmpClient.connect(socket);
    await peer.handshake();
    await using client = await connecting;
    const stopped = client.expect("STOP");
    const done = client.execute("stop");
    const id = await peer.expect("stop");
    peer.event("STOP");
    peer.reply(id);
    expect((await stopped).event).toBe("STOP");
    expect(await done).toEqual({});
  });

  test("reads a greeting that came before it was called", async () => {
    const { peer, socket } = await socketPair(true);
    using _peer = peer;
    peer.greet();
    await once(socket, "readable");
    const connecting = QmpClient.connect(socket);
    peer.reply(await peer.expect("qmp_capabilities", { enable: ["oob"] }));
    await using client = await connecting;
    expect(client.greeting.version.package).toBe("scripted");
  });

  test("notices at once that the peer is gone, in mid-line and before anything", async () => {
    const { peer, socket } = await socketPair(false);
    const connecting = QmpClient.connect(socket, { timeoutMs: Infinity });
    await peer.handshake();
    const client = await connecting;
    const pending = codeOf(client.execute("stop"));
    await peer.expect("stop");
    peer.send('{"return": {');
    peer.drop();
    expect(await pending).toBe("QMP_CLOSED");
    expect(socket.destroyed).toBe(true);

    const gone = await socketPair(false);
    gone.peer.drop();
    expect(await codeOf(QmpClient.connect(gone.socket, { timeoutMs: Infinity }))).toBe("QMP_CLOSED");
  });

  test("takes the peer's end of stream as its end, also where the socket would stay half open", async () => {
    const { peer, socket } = await socketPair(false, true);
    using _peer = peer;
    const connecting = QmpClient.connect(socket, { timeoutMs: Infinity });
    await peer.handshake();
    const client = await connecting;
    peer.end();
    expect((await client.closed).code).toBe("QMP_CLOSED");
  });

  test("rejects for a socket that is already destroyed", async () => {
    const { peer, socket } = await socketPair(false);
    using _peer = peer;
    const closed = once(socket, "close");
    socket.destroy();
    await closed;
    expect(await codeOf(QmpClient.connect(socket, { timeoutMs: Infinity }))).toBe("QMP_CLOSED");
  });

  test("hangs up when it is closed, when it gives up, and on garbage", async () => {
    const closed = await socketPair(false);
    const connecting = QmpClient.connect(closed.socket);
    await closed.peer.handshake();
    await (await connecting).close();
    await closed.peer.dropped;

    const silent = await socketPair(false);
    expect(await codeOf(QmpClient.connect(silent.socket, { timeoutMs: 1 }))).toBe("QMP_TIMEOUT");
    await silent.peer.dropped;

    const mad = await socketPair(false);
    const madness = codeOf(QmpClient.connect(mad.socket));
    mad.peer.send("HTTP/1.1 400 Bad Request\r\n\r\n");
    expect(await madness).toBe("QMP_PROTOCOL");
    await mad.peer.dropped;
  });
});
