import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { existsSync, readFileSync } from "node:fs";
import { limits } from "../../guest-agent/protocol/constants.ts";
import type { AgentClient } from "../../guest-agent/protocol/mod.ts";
import { rejection } from "../support/agent-peer.ts";
import { AgentUnderTest } from "../support/agent-process.ts";

// A bound for a machine that has other things to do, no expectation.
setDefaultTimeout(60_000);

let agent: AgentUnderTest;
let client: AgentClient;

beforeAll(async () => {
  agent = await AgentUnderTest.start();
  ({ client } = await agent.client());
}, 120_000);

afterAll(async () => {
  await client[Symbol.asyncDispose]();
  await agent[Symbol.asyncDispose]();
});

describe("exec()", () => {
  test("gives a program its arguments, environment, directory and input", async () => {
    const script = 'printf "%s|" "$@"; pwd; echo "$GREETING"; cat; echo oops >&2; exit 3';
    const argv = ["sh", "-c", script, "sh", "a b", "", "ü"];
    const result = await client.run(argv, { env: { GREETING: "hi" }, cwd: "/usr", input: "from stdin\n" });
    expect(result).toEqual({
      code: 3,
      stdout: "a b||ü|/usr\nhi\nfrom stdin\n",
      stderr: "oops\n",
      truncated: false,
    });
  });

  test("adds PATH and HOME only if they are absent, and nothing else", async () => {
    const standard = await client.run(["env"]);
    expect(standard.stdout.trim().split("\n").sort()).toEqual([
      "HOME=/root",
      "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    ]);
    const own = await client.run(["/usr/bin/env"], { env: { PATH: "/nowhere", HOME: "/h" } });
    expect(own.stdout.trim().split("\n").sort()).toEqual(["HOME=/h", "PATH=/nowhere"]);
  });

  test("starts programs with default signals, their own session and descriptors 0 to 2 only", async () => {
    const script =
      'exec 3</proc/self/status; while read -r a b <&3; do case $a in Sig*) echo $a $b;; esac; done; exec 3<&-; echo /proc/self/fd/*; read -r x </proc/self/stat; set -- $x; [ "$1" = "$6" ] && echo leader';
    const { stdout } = await client.run(["sh", "-c", script]);
    expect(stdout).toContain("SigBlk: 0000000000000000");
    expect(stdout).toContain("SigIgn: 0000000000000000");
    expect(stdout).toContain("leader");
    const { stdout: fds } = await client.run(["ls", "/proc/self/fd"]);
    expect(fds.trim().split("\n")).toEqual(["0", "1", "2", "3"]); // 3 is ls looking
  });

  test("reports the signal that ended a program, and kills whole groups", async () => {
    const program = await client.exec(["sh", "-c", "sleep 1000 & echo $!; wait"]);
    const reader = program.stdout.getReader();
    const grandchild = Number(Buffer.from((await reader.read()).value!).toString());
    expect(existsSync(`/proc/${grandchild}`)).toBe(true);
    expect(await program.kill("SIGTERM")).toBe(true);
    expect(await program.exited).toEqual({ signal: "SIGTERM" });
    expect((await reader.read()).done).toBe(true); // the grandchild held the pipe as well
    expect(await program.kill()).toBe(false);
    expect(await rejection(program.kill("SIGNONE"))).toMatchObject({ code: "BAD_ARGUMENT" });
  });

  test("says exactly why a program cannot be started", async () => {
    const cases: [string[], object, string, string][] = [
      [["/nowhere/at-all"], {}, "ENOENT", "/nowhere/at-all"],
      [["no-such-program"], {}, "ENOENT", "no-such-program"],
      [["/etc/passwd"], {}, "EACCES", "/etc/passwd"],
      [["/usr"], {}, "EACCES", "/usr"],
      [["true"], { cwd: "/nowhere" }, "ENOENT", "chdir /nowhere"],
      [["true"], { env: { PATH: "/nowhere" } }, "ENOENT", "true"],
      [["true/x"], { cwd: "/usr/bin" }, "ENOTDIR", "true/x"],
    ];
    for (const [argv, options, errno, words] of cases) {
      const error = await rejection(client.exec(argv, options));
      expect(error).toMatchObject({ code: "AGENT_REFUSED", remote: "SYS", errno });
      expect(error.message).toContain(words);
    }
    expect(await client.run(["true"])).toMatchObject({ code: 0 });
  });

  test("EPIPE reaches the writer of a stdin that nobody reads", async () => {
    const program = await client.exec(["sh", "-c", "exec <&-; sleep 1000"], { stdin: true });
    const writer = program.stdin!.getWriter();
    const error = await rejection(
      (async () => {
        for (;;) await writer.write(new Uint8Array(1000));
      })(),
    );
    expect(error).toMatchObject({ code: "AGENT_REFUSED", errno: "EPIPE" });
    await program.kill("SIGKILL");
    expect(await program.exited).toEqual({ signal: "SIGKILL" });
    expect(await client.run(["true"], { input: "x".repeat(1 << 20) })).toMatchObject({ code: 0 });
  });

  test("passes large input and output through unchanged", async () => {
    const input = Uint8Array.from({ length: 3 << 20 }, (_, i) => 33 + ((i * 7 + (i >> 11)) % 90));
    const { stdout, truncated } = await client.run(["cat"], { input, maxBytes: 4 << 20 });
    expect(truncated).toBe(false);
    expect(Buffer.from(stdout).equals(input)).toBe(true);
  });

  test("run() keeps only as much as it may, and still sees the end", async () => {
    const result = await client.run(["sh", "-c", "head -c 3000000 /dev/zero; exit 4"], { maxBytes: 1000 });
    expect(result).toMatchObject({ code: 4, truncated: true });
    expect(result.stdout.length).toBe(1000);
  });

  test("cancelling stdout gives the program SIGPIPE", async () => {
    const program = await client.exec(["yes"]);
    await program.stdout.cancel();
    expect(await program.exited).toEqual({ signal: "SIGPIPE" });
  });

  test("an abort or a deadline kills the program, and the agent goes on", async () => {
    const aborter = new AbortController();
    const program = await client.exec(["sleep", "1000"], { signal: aborter.signal });
    aborter.abort();
    expect(await rejection(program.exited)).toMatchObject({ code: "ABORTED" });
    expect(await rejection(program.stdout.getReader().read())).toMatchObject({ code: "ABORTED" });
    expect(await rejection(client.run(["sleep", "1000"], { timeoutMs: 20 }))).toMatchObject({
      code: "AGENT_TIMEOUT",
    });
    await settled(client);
    expect(existsSync(`/proc/${program.pid}`)).toBe(false);
  });

  test("runs many programs at once and refuses the one above the limit", async () => {
    const programs = await Promise.all(
      Array.from({ length: limits.OPS_MAX }, () => client.exec(["cat"], { stdin: true })),
    );
    expect(await rejection(client.exec(["true"]))).toMatchObject({ code: "AGENT_REFUSED", remote: "LIMIT" });
    await Promise.all(programs.map((program) => program.stdin!.close()));
    for (const program of programs) expect(await program.exited).toEqual({ code: 0 });
    await settled(client);
    expect(await client.run(["true"])).toMatchObject({ code: 0 });
  });

  test("leaves no zombie and no descriptor behind", async () => {
    await settled(client);
    const before = readFileSync(`/proc/${agent.pid}/status`, "utf8").match(/FDSize:.*/)![0];
    for (let i = 0; i < 40; i++) await client.run(["sh", "-c", "true & true"], { input: "x" });
    await rejection(client.exec(["/nowhere"]));
    await settled(client);
    expect(readFileSync(`/proc/${agent.pid}/status`, "utf8").match(/FDSize:.*/)![0]).toBe(before);
    const children = readFileSync(`/proc/${agent.pid}/task/${agent.pid}/children`, "utf8");
    expect(children.trim()).toBe("");
  });
});

test("quiesce() is refused while a program runs, and answered once it is gone", async () => {
  const program = await client.exec(["cat"], { stdin: true });
  expect(await rejection(client.quiesce())).toMatchObject({ code: "AGENT_REFUSED", remote: "BUSY" });
  const other = await client.exec(["true"]);
  await other.exited;
  await program.stdin!.close();
  await program.exited;
  await settled(client);
  await client.quiesce();
  client.release();
});

/** Waits until the agent has nothing running: every operation's last message has come. */
async function settled(of: AgentClient): Promise<void> {
  for (;;) {
    try {
      await of.quiesce();
      of.release();
      return;
    } catch (error) {
      if (!(error instanceof Error) || !("remote" in error) || error.remote !== "BUSY") throw error;
      await of.ping();
    }
  }
}
