import { describe, expect, test } from "bun:test";
import { encodeData } from "../../guest-agent/protocol/codec.ts";
import { limits } from "../../guest-agent/protocol/constants.ts";
import { rejection, ScriptedGuest } from "../support/agent-peer.ts";

const hello = {
  protocol: 3,
  agent: "0",
  kernel: "k",
  hostname: "h",
  pid: 1,
  bootNs: 1,
  nowNs: 2,
  memBytes: 3,
};

describe("AgentClient", () => {
  test("hello() refuses an agent of another version by both numbers", async () => {
    await using guest = await ScriptedGuest.start();
    const answer = rejection(guest.client.hello());
    const { id } = await guest.expect("HELLO");
    guest.greet();
    guest.send("HELLO", id, { ...hello, protocol: 4 });
    expect(await answer).toMatchObject({
      code: "AGENT_PROTOCOL",
      message: expect.stringMatching(/version 4.*version 3/),
    });
  });

  test("ignores the boot hello and answers to what it gave up", async () => {
    await using guest = await ScriptedGuest.start();
    expect(await rejection(guest.client.ping({ timeoutMs: 1 }))).toMatchObject({ code: "AGENT_TIMEOUT" });
    const { id } = await guest.expect("PING");
    const second = guest.client.ping();
    const { id: secondId } = await guest.expect("PING");
    guest.greet();
    guest.send("HELLO", 0, hello);
    guest.send("PONG", id);
    guest.send("PONG", secondId);
    await second;
  });

  test("rejects everything that waits, with the reason and the process's last words", async () => {
    await using guest = await ScriptedGuest.start({ name: "child 7", stderr: () => "qemu: out of luck\n" });
    const started = guest.client.exec(["cat"], { stdin: true });
    const { id } = await guest.expect("EXEC");
    guest.greet();
    guest.send("STARTED", id, { pid: 5 });
    const program = await started;
    const waiting = [
      program.exited,
      program.stdout.getReader().read(),
      guest.client.ping(),
      guest.client.putFile("/x", "y"),
      guest.client.list("/"),
      new Response(guest.client.getFile("/x")).bytes(),
      guest.client.run(["true"]),
    ].map(rejection);
    guest.socket.destroy();
    for (const error of await Promise.all(waiting)) {
      expect(error).toMatchObject({ code: "AGENT_CLOSED" });
      expect(error.message).toContain("child 7");
      expect(error.message).toContain("out of luck");
    }
    expect((await guest.client.closed).code).toBe("AGENT_CLOSED");
    expect(await rejection(guest.client.ping())).toMatchObject({ code: "AGENT_CLOSED" });
  });

  test("still hands out what had arrived before the channel died", async () => {
    await using guest = await ScriptedGuest.start();
    const started = guest.client.exec(["x"]);
    const { id } = await guest.expect("EXEC");
    guest.greet();
    guest.send("STARTED", id, { pid: 5 });
    guest.socket.end(encodeData(id, 1, Buffer.from("last words")));
    const reader = (await started).stdout.getReader();
    expect(Buffer.from((await reader.read()).value!).toString()).toBe("last words");
    expect(await rejection(reader.read())).toMatchObject({ code: "AGENT_CLOSED" });
  });

  test("closes the channel on a guest that sends more than its credit", async () => {
    await using guest = await ScriptedGuest.start();
    const started = guest.client.exec(["x"]);
    const { id } = await guest.expect("EXEC");
    guest.greet();
    guest.send("STARTED", id, { pid: 5 });
    await started;
    const chunk = new Uint8Array(limits.CHUNK_MAX);
    for (let sent = 0; sent <= limits.WINDOW_TO_HOST; sent += chunk.length)
      guest.socket.write(encodeData(id, 1, chunk));
    expect(await guest.client.closed).toMatchObject({ code: "AGENT_PROTOCOL" });
  });

  test("closes the channel on a guest that gives more credit than a window", async () => {
    await using guest = await ScriptedGuest.start();
    const started = guest.client.exec(["x"], { stdin: true });
    const { id } = await guest.expect("EXEC");
    guest.greet();
    guest.send("STARTED", id, { pid: 5 });
    await started;
    guest.send("CREDIT", id, { s: 0, n: 1 });
    expect(await guest.client.closed).toMatchObject({ code: "AGENT_PROTOCOL" });
  });

  test("closes the channel on an answer of the wrong kind, and on an error without id", async () => {
    for (const answer of ["QUIESCED", "ERROR"] as const) {
      await using guest = await ScriptedGuest.start();
      const ping = rejection(guest.client.ping());
      const { id } = await guest.expect("PING");
      guest.greet();
      guest.send(
        answer,
        answer === "ERROR" ? 0 : id,
        answer === "ERROR" ? { code: "BAD_MESSAGE", message: "m" } : undefined,
      );
      expect(await ping).toMatchObject({ code: "AGENT_PROTOCOL" });
    }
  });

  test("a guest that sends single bytes makes the host keep hardly more than the bytes", async () => {
    await using guest = await ScriptedGuest.start();
    const started = guest.client.exec(["x"]);
    const { id } = await guest.expect("EXEC");
    guest.greet();
    guest.send("STARTED", id, { pid: 5 });
    const count = 20_000;
    guest.socket.write(
      Buffer.concat(Array.from({ length: count }, (_, i) => encodeData(id, 1, Uint8Array.of(i)))),
    );
    const program = await started;
    const ping = guest.client.ping();
    guest.send("PONG", (await guest.expect("PING")).id);
    await ping;
    const reader = program.stdout.getReader();
    let chunks = 0;
    for (let bytes = 0; bytes < count; chunks++) {
      const { value } = await reader.read();
      for (let i = 0; i < value!.length; i++) expect(value![i]).toBe((bytes + i) & 255);
      bytes += value!.length;
    }
    expect(chunks).toBeLessThan(20);
  });

  test("list() refuses more entries than it was allowed", async () => {
    await using guest = await ScriptedGuest.start();
    const listing = rejection(guest.client.list("/x", { maxEntries: 1 }));
    const { id } = await guest.expect("LIST");
    guest.greet();
    guest.send("OK", id);
    const entry = Buffer.from("95a161a466696c65000000", "hex");
    guest.socket.write(encodeData(id, 1, Buffer.concat([entry, entry])));
    expect(await listing).toMatchObject({ code: "AGENT_REFUSED", message: '"/x" has more than 1 entries' });
    await guest.expect("CANCEL");
  });

  test("aborting refuses at once, before anything is sent", async () => {
    await using guest = await ScriptedGuest.start();
    const signal = AbortSignal.abort();
    for (const call of [
      guest.client.ping({ signal }),
      guest.client.exec(["x"], { signal }),
      guest.client.list("/", { signal }),
      guest.client.putFile("/x", "", { signal }),
    ])
      expect(await rejection(call)).toMatchObject({ code: "ABORTED" });
    const ping = guest.client.ping();
    const { id } = await guest.expect("PING");
    guest.greet();
    guest.send("PONG", id);
    await ping;
  });

  test("exec() refuses arguments that no kernel would take", async () => {
    await using guest = await ScriptedGuest.start();
    for (const argv of [[], ["a\0b"], Array.from({ length: limits.ARGS_MAX + 1 }, () => "x")])
      expect(await rejection(guest.client.exec(argv))).toMatchObject({ code: "BAD_ARGUMENT" });
    expect(await rejection(guest.client.exec(["x".repeat(70_000)]))).toMatchObject({ errno: "E2BIG" });
  });
});
