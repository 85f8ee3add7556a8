import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { readFileSync } from "node:fs";
import type { Socket } from "node:net";
import { hostname } from "node:os";
import { codeOf } from "../../errors/errors.ts";
import { encodeData, encodeMessage, FrameReader } from "../../guest-agent/protocol/codec.ts";
import { limits, MARKER, messageTypes } from "../../guest-agent/protocol/constants.ts";
import { type GuestMessage, parseMessage } from "../../guest-agent/protocol/messages.ts";
import { freshIdentity } from "../support/agent-identity.ts";
import { rejection } from "../support/agent-peer.ts";
import { AgentUnderTest, OWN_HOSTNAME } from "../support/agent-process.ts";

// A bound for a machine that has other things to do, no expectation.
setDefaultTimeout(60_000);

// A frame's head costs at most this part of what it carries, with chunks as small as `yes` makes them.
const HEADS = 1.05;

describe("credit", () => {
  test("holds a program up that writes faster than the host reads, while requests are answered", async () => {
    await using agent = await AgentUnderTest.start();
    const { client, socket } = await agent.client();
    const noisy = await client.exec(["yes"]);
    while (socket.bytesRead < limits.WINDOW_TO_HOST) await client.ping();
    const resident = agent.residentKiB;
    for (let i = 0; i < 200; i++) await client.ping();
    expect(await client.run(["echo", "other streams go on"])).toMatchObject({ code: 0 });
    expect(socket.bytesRead).toBeLessThan(limits.WINDOW_TO_HOST * HEADS + 200 * 16);
    expect(agent.residentKiB - resident).toBeLessThan(1024);
    // What the program got rid of: the window, a pipe, and what it is about to write.
    const written = Number(/wchar: (\d+)/.exec(readFileSync(`/proc/${noisy.pid}/io`, "utf8"))![1]);
    expect(written).toBeLessThan(limits.WINDOW_TO_HOST + 2 * 65536);
    let read = 0;
    for await (const chunk of noisy.stdout) {
      expect(chunk.every((byte, i) => byte === ((read + i) % 2 === 0 ? 0x79 : 0x0a))).toBe(true);
      read += chunk.length;
      if (read > 4 * limits.WINDOW_TO_HOST) break; // leaving the loop cancels the stream
    }
    expect(await noisy.exited).toEqual({ signal: "SIGPIPE" });
  }, 120_000);

  test("holds the host up that writes faster than a program reads", async () => {
    await using agent = await AgentUnderTest.start();
    const { client, socket } = await agent.client();
    const deaf = await client.exec(["sleep", "1000"], { stdin: true });
    const writer = deaf.stdin!.getWriter();
    const writing = rejection(writer.write(new Uint8Array(4 << 20)));
    while (socket.bytesWritten < limits.WINDOW_TO_GUEST) await client.ping();
    for (let i = 0; i < 200; i++) await client.ping();
    expect(socket.bytesWritten).toBeLessThan((limits.WINDOW_TO_GUEST + 65536) * HEADS + 8192);
    await deaf.kill("SIGKILL");
    expect(await deaf.exited).toEqual({ signal: "SIGKILL" });
    expect(await writing).toMatchObject({ errno: "EPIPE" });
  });

  test("a host that reads nothing holds the agent up; no answer is lost and none kept without end", async () => {
    await using agent = await AgentUnderTest.start();
    const socket = await agent.socket();
    socket.pause();
    socket.write(MARKER);
    const resident = agent.residentKiB;
    const rounds = 50;
    const each = 2000;
    const pings = Buffer.concat(
      Array.from({ length: each }, (_, i) => encodeMessage(messageTypes.PING, i + 1)),
    );
    for (let i = 0; i < rounds; i++) socket.write(pings);
    const answers = new Answers(socket);
    socket.resume();
    for (let i = 0; i < rounds * each; i++) {
      const answer = await answers.next();
      if (answer.type !== "PONG" || answer.id !== (i % each) + 1)
        throw new Error(`Answer ${i} is ${JSON.stringify(answer)}`);
    }
    expect(agent.residentKiB - resident).toBeLessThan(1024);
  });

  test("more data than credit ends the operation, not the agent", async () => {
    await using agent = await AgentUnderTest.start();
    const socket = await agent.socket();
    const answers = new Answers(socket);
    socket.write(
      Buffer.concat([MARKER, encodeMessage(messageTypes.EXEC, 5, { argv: ["sleep", "1000"], stdin: true })]),
    );
    expect(await answers.next()).toMatchObject({ type: "STARTED" });
    const chunk = new Uint8Array(limits.CHUNK_MAX);
    for (let sent = 0; sent < 2 * limits.WINDOW_TO_GUEST; sent += chunk.length)
      socket.write(encodeData(5, 0, chunk));
    socket.write(encodeMessage(messageTypes.PING, 6));
    const seen: string[] = [];
    for (let last = ""; last !== "PONG"; seen.push(last)) {
      const answer = await answers.next();
      last = answer.type === "ERROR" ? answer.code : answer.type;
    }
    expect(seen.filter((type) => type !== "CREDIT")).toEqual(["FLOW", "PONG"]);
  });
});

describe("bad frames", () => {
  test("a frame above the cap ends the session; input is dropped up to the next marker", async () => {
    await using agent = await AgentUnderTest.start();
    const socket = await agent.socket();
    const answers = new Answers(socket);
    const head = Buffer.alloc(4);
    head.writeUInt32BE(limits.FRAME_MAX + 1);
    const ping = (id: number) => encodeMessage(messageTypes.PING, id);
    const program = encodeMessage(messageTypes.EXEC, 2, { argv: ["sleep", "1000"] });
    socket.write(Buffer.concat([MARKER, ping(1), program]));
    expect(await answers.next()).toMatchObject({ type: "PONG", id: 1 });
    const started = await answers.next();
    socket.write(Buffer.concat([head, ping(3), Buffer.alloc(200_000, 0xff), ping(4)]));
    expect(await answers.next()).toMatchObject({ type: "ERROR", id: 0, code: "FRAME_TOO_LARGE" });
    socket.write(Buffer.concat([MARKER.subarray(0, 5), MARKER, ping(5)]));
    expect(await answers.next()).toMatchObject({ type: "PONG", id: 5 });
    if (started.type !== "STARTED") throw new Error(`Not started: ${JSON.stringify(started)}`);
    for (let id = 6; isRunning(started.pid); id++) {
      socket.write(ping(id));
      await answers.next();
    }
  });

  test("a frame of the largest size is still read", async () => {
    await using agent = await AgentUnderTest.start();
    const { client } = await agent.client();
    const empty =
      encodeMessage(messageTypes.EXEC, 1, { argv: ["echo", "x".repeat(60_000)], env: [] }).length -
      4 -
      60_000;
    const longest = "x".repeat(limits.FRAME_MAX - empty);
    expect((await client.run(["echo", longest])).stdout).toBe(`${longest}\n`);
    expect(await rejection(client.exec(["echo", `${longest}x`]))).toMatchObject({ code: "BAD_ARGUMENT" });
  });

  test("what is no message is answered by an error, and the next frame is read", async () => {
    await using agent = await AgentUnderTest.start();
    const socket = await agent.socket();
    const answers = new Answers(socket);
    socket.write(MARKER);
    const cases: [Uint8Array, string, number][] = [
      [frame(Uint8Array.of(0xc1)), "BAD_MESSAGE", 0],
      [frame(new Uint8Array(0)), "BAD_MESSAGE", 0],
      [frame(Buffer.from("ddffffffff", "hex")), "BAD_MESSAGE", 0],
      [encodeMessage(99, 7), "UNKNOWN_TYPE", 7],
      [encodeMessage(messageTypes.PONG, 7), "UNKNOWN_TYPE", 7],
      [encodeMessage(messageTypes.PING, 0), "BAD_MESSAGE", 0],
      [encodeMessage(messageTypes.EXEC, 8), "BAD_MESSAGE", 8],
      [encodeMessage(messageTypes.EXEC, 8, { argv: [] }), "BAD_MESSAGE", 8],
      [encodeMessage(messageTypes.EXEC, 8, { argv: ["a\0b"] }), "BAD_MESSAGE", 8],
      [encodeMessage(messageTypes.EXEC, 8, { argv: [1] }), "BAD_MESSAGE", 8],
      [encodeMessage(messageTypes.GET, 9, { path: "" }), "BAD_MESSAGE", 9],
      [encodeMessage(messageTypes.GET, 9, { path: "p".repeat(limits.PATH_MAX) }), "BAD_MESSAGE", 9],
      [encodeMessage(messageTypes.PUT, 9, { path: "/x", mode: 0o10000 }), "BAD_MESSAGE", 9],
      [
        encodeMessage(messageTypes.IDENTIFY, 9, { ...freshIdentity({ hostname: "h".repeat(65) }) }),
        "BAD_MESSAGE",
        9,
      ],
      [encodeMessage(messageTypes.IDENTIFY, 9, { ...freshIdentity({ hostname: "" }) }), "BAD_MESSAGE", 9],
      [encodeMessage(messageTypes.IDENTIFY, 9, { hostname: "h", index: 0 }), "BAD_MESSAGE", 9],
      [encodeMessage(messageTypes.KILL, 9, { target: 1, signal: 9 }), "NO_SUCH_ID", 9],
      [encodeMessage(messageTypes.KILL, 9, { target: 1, signal: 0 }), "BAD_MESSAGE", 9],
    ];
    for (const [bytes, code, id] of cases) {
      socket.write(bytes);
      expect(await answers.next()).toMatchObject({ type: "ERROR", code, id });
    }
    // For an id that is gone, what streams carry is dropped without a word.
    const late = [
      encodeData(77, 0, Uint8Array.of(1)),
      ...(["END", "CREDIT", "CANCEL"] as const).map((type) =>
        encodeMessage(messageTypes[type], 77, { s: 1, n: 1 }),
      ),
    ];
    socket.write(
      Buffer.concat([...late, encodeMessage(messageTypes.PING, 10, { later: [1, { version: true }] })]),
    );
    expect(await answers.next()).toMatchObject({ type: "PONG", id: 10 });
  });

  test("an id that is in use is refused", async () => {
    await using agent = await AgentUnderTest.start();
    const socket = await agent.socket();
    const answers = new Answers(socket);
    socket.write(
      Buffer.concat([MARKER, encodeMessage(messageTypes.EXEC, 5, { argv: ["cat"], stdin: true })]),
    );
    expect(await answers.next()).toMatchObject({ type: "STARTED" });
    socket.write(encodeMessage(messageTypes.GET, 5, { path: "/etc/passwd" }));
    expect(await answers.next()).toMatchObject({ type: "ERROR", code: "ID_IN_USE", id: 5 });
  });
});

describe("a new host", () => {
  test("finds no trace of one that hung up within a frame", async () => {
    await using agent = await AgentUnderTest.start();
    const first = await agent.socket();
    const answers = new Answers(first);
    first.write(Buffer.concat([MARKER, encodeMessage(messageTypes.EXEC, 1, { argv: ["sleep", "1000"] })]));
    const started = await answers.next();
    first.end(encodeMessage(messageTypes.EXEC, 2, { argv: ["sleep", "1000"] }).subarray(0, 11));
    const { client } = await agent.client();
    await client.ping();
    await client.quiesce(); // the first host's operations are gone; their processes die presently
    if (started.type !== "STARTED") throw new Error(`Not started: ${JSON.stringify(started)}`);
    while (isRunning(started.pid)) await client.ping();
  });

  test("takes over by its marker alone, in the middle of a frame of the last one", async () => {
    await using agent = await AgentUnderTest.start();
    const { client: first, socket } = await agent.client();
    const program = await first.exec(["sleep", "1000"]);
    const half = encodeMessage(messageTypes.EXEC, 9, { argv: ["x".repeat(1000)] }).subarray(0, 500);
    for (const cut of [1, 3, 4, 9, half.length]) {
      socket.write(
        Buffer.concat([half.subarray(0, cut), MARKER, encodeMessage(messageTypes.QUIESCE, 4_000_000)]),
      );
    }
    await first.ping();
    first.release(); // the markers have not ended the rest that was asked for
    const answers = await first.run(["echo", "in step"]);
    expect(answers.stdout).toBe("in step\n");
    while (isRunning(program.pid)) await first.ping();
  });

  test("needs no word with the agent before it identifies it", async () => {
    await using agent = await AgentUnderTest.start({ wrapper: OWN_HOSTNAME, args: ["--set-hostname"] });
    for (const index of [7, 8]) {
      const { client } = await agent.client();
      await using _ = client;
      expect(await client.identify(freshIdentity({ hostname: `child-${index}`, index }))).toMatchObject({
        hostname: `child-${index}`,
        index,
      });
      expect((await client.run(["uname", "-n"])).stdout).toBe(`child-${index}\n`);
      expect((await client.hello()).hostname).toBe(`child-${index}`);
    }
    expect(hostname()).not.toStartWith("child-");
  });

  test("learns the truth when the name cannot be set", async () => {
    await using agent = await AgentUnderTest.start();
    const { client } = await agent.client();
    const error = await rejection(client.identify(freshIdentity({ hostname: "nobody", index: 1 })));
    expect(error).toMatchObject({ code: "AGENT_REFUSED", errno: "EPERM" });
    expect(hostname()).not.toBe("nobody");
  });
});

test("hello() tells versions, clocks and memory", async () => {
  await using agent = await AgentUnderTest.start();
  const { client } = await agent.client();
  const info = await client.hello();
  expect(info).toMatchObject({ protocol: 3, pid: agent.pid, hostname: hostname() });
  expect(info.kernel).toBe(readFileSync("/proc/sys/kernel/osrelease", "utf8").trim());
  expect(info.nowNs).toBeGreaterThan(info.bootNs);
  const total = /MemTotal:\s+(\d+)/.exec(readFileSync("/proc/meminfo", "utf8"))![1];
  expect(info.memBytes).toBe(Number(total) * 1024);
});

test("shutdown() ends the programs, also one that ignores SIGTERM, and then the agent", async () => {
  await using agent = await AgentUnderTest.start();
  const { client } = await agent.client();
  const polite = await client.exec(["sleep", "1000"]);
  const stubborn = await client.exec(["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1000; done"]);
  await stubborn.stdout.getReader().read();
  await client.shutdown({ graceMs: 50 });
  await agent.exited;
  expect(agent.process.exitCode).toBe(0);
  expect((await client.closed).code).toBe("AGENT_CLOSED");
  for (const program of [polite, stubborn]) {
    expect(await rejection(program.exited)).toMatchObject({ code: "AGENT_CLOSED" });
    expect(isRunning(program.pid)).toBe(false);
  }
});

/** The agent's messages on a bare socket, without the hello at the connection's start. */
class Answers {
  readonly #reader = new FrameReader();
  readonly #queue: GuestMessage[] = [];
  #arrived = Promise.withResolvers<void>();

  constructor(socket: Socket) {
    socket.on("data", (chunk: Uint8Array) => {
      this.#reader.push(chunk, (payload) => {
        const message = parseMessage(payload.slice());
        if (message.type !== "HELLO") this.#queue.push(message);
      });
      this.#arrived.resolve();
    });
  }

  async next(): Promise<GuestMessage> {
    while (this.#queue.length === 0) {
      await this.#arrived.promise;
      this.#arrived = Promise.withResolvers<void>();
    }
    return this.#queue.shift()!;
  }
}

function frame(payload: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(4 + payload.length);
  new DataView(bytes.buffer).setUint32(0, payload.length);
  bytes.set(payload, 4);
  return bytes;
}

/** Whether a process is there and not just waiting to be reaped. */
function isRunning(pid: number): boolean {
  try {
    return !/^State:\s+[ZX]/m.test(readFileSync(`/proc/${pid}/status`, "utf8"));
  } catch (error) {
    if (codeOf(error) === "ENOENT" || codeOf(error) === "ESRCH") return false;
    throw error;
  }
}
