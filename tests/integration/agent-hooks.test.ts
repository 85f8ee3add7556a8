import { describe, expect, setDefaultTimeout, test } from "bun:test";
import type { AgentClient } from "../../guest-agent/protocol/mod.ts";
import { ScriptedHook } from "../support/agent-hook.ts";
import { freshIdentity } from "../support/agent-identity.ts";
import { rejection } from "../support/agent-peer.ts";
import { AgentUnderTest } from "../support/agent-process.ts";

// A bound for a machine that has other things to do, no expectation.
setDefaultTimeout(60_000);

const SEED = /^forked vm-1 3 ([0-9a-f]{64})$/;

/** Has one hook answer `prepare`, which brings the guest to rest. */
async function quiesced(client: AgentClient, ...hooks: ScriptedHook[]): Promise<number> {
  const quiescing = client.quiesce();
  for (const hook of hooks) {
    expect(await hook.next()).toBe("prepare");
    hook.say("ready");
  }
  return (await quiescing).hooks;
}

describe("a fork hook", () => {
  test("goes through a fork: every hook has a seed of its own, and goes on at the release alone", async () => {
    await using agent = await AgentUnderTest.start({ identity: true });
    const { client } = await agent.client();
    using first = await ScriptedHook.register(agent, "first");
    using second = await ScriptedHook.register(agent, "second.hook-2");
    expect(await quiesced(client, first, second)).toBe(2);
    const identified = client.identify(freshIdentity({ vmId: "vm-1", index: 3 }));
    const seeds = [first, second].map(async (hook) => SEED.exec((await hook.next())!)![1]!);
    const [one, two] = await Promise.all(seeds);
    expect(one).not.toBe(two!);
    first.say("done evidence of the first");
    second.say("done");
    const receipt = await identified;
    expect(receipt.hooks).toEqual([
      { name: "first", pid: process.pid, ok: true, text: "evidence of the first" },
      { name: "second.hook-2", pid: process.pid, ok: true, text: "" },
    ]);
    expect(receipt.tookNs).toBeGreaterThan(receipt.kernelNs);
    await client.ping(); // whatever it had sent to the hooks before would be there by now
    client.release();
    expect(await first.next()).toBe("go");
    expect(await second.next()).toBe("go");
    // The child may be frozen again, and then go on itself: then nobody is told that it was forked.
    expect(await quiesced(client, first, second)).toBe(2);
    client.release();
    expect(await first.next()).toBe("resume");
  });

  test("takes part in the fork of a running VM no more than any other program", async () => {
    await using agent = await AgentUnderTest.start({ identity: true });
    const { client } = await agent.client();
    using hook = await ScriptedHook.register(agent, "idle");
    expect((await client.identify(freshIdentity())).hooks).toEqual([]);
    expect(await quiesced(client, hook)).toBe(1);
  });

  test("that is busy holds no fork up: it is refused by name, and the others go on", async () => {
    await using agent = await AgentUnderTest.start({ identity: true });
    const { client } = await agent.client();
    using ready = await ScriptedHook.register(agent, "ready");
    using busy = await ScriptedHook.register(agent, "busy");
    const refused = rejection(client.quiesce());
    expect(await ready.next()).toBe("prepare");
    ready.say("ready");
    expect(await busy.next()).toBe("prepare");
    busy.say("busy a request runs");
    const error = await refused;
    expect(error).toMatchObject({ code: "AGENT_REFUSED", remote: "BUSY" });
    expect(error.message).toContain(`busy (process ${process.pid}): a request runs`);
    expect(await ready.next()).toBe("resume");
    expect(await client.run(["echo", "awake"])).toMatchObject({ stdout: "awake\n" });
    expect(await quiesced(client, ready, busy)).toBe(2); // and no `resume` came to the busy one in between
  });

  test("that fails, or is too late, is in the receipt as one that failed; a late answer is no offence", async () => {
    await using agent = await AgentUnderTest.start({ identity: true });
    const { client } = await agent.client();
    using failing = await ScriptedHook.register(agent, "failing");
    using slow = await ScriptedHook.register(agent, "slow");
    await quiesced(client, failing, slow);
    const identified = client.identify(freshIdentity({ hookTimeoutMs: 100 }));
    expect(await failing.next()).toStartWith("forked ");
    failing.say("failed no generator here");
    expect((await identified).hooks).toEqual([
      { name: "failing", pid: process.pid, ok: false, text: "no generator here" },
      { name: "slow", pid: process.pid, ok: false, text: "it has not answered in time" },
    ]);
    client.release();
    expect(await slow.next()).toStartWith("forked ");
    expect(await slow.next()).toBe("go");
    expect(await failing.next()).toBe("go");
    const quiescing = client.quiesce();
    slow.say("done at last"); // for the fork before
    for (const hook of [failing, slow]) {
      expect(await hook.next()).toBe("prepare");
      hook.say("ready");
    }
    expect(await quiescing).toEqual({ hooks: 2 });
  });

  test("that vanishes before the fork is forgotten, within it is a failure, and behind it forgotten again", async () => {
    await using agent = await AgentUnderTest.start({ identity: true });
    const { client } = await agent.client();
    using stays = await ScriptedHook.register(agent, "stays");
    {
      using _early = await ScriptedHook.register(agent, "early");
    }
    {
      using asked = await ScriptedHook.register(agent, "asked");
      const refused = rejection(client.quiesce());
      expect(await asked.next()).toBe("prepare");
      expect(await stays.next()).toBe("prepare");
      asked.socket.destroy();
      stays.say("ready");
      expect((await refused).message).toContain("asked");
      expect(await stays.next()).toBe("resume");
    }
    using held = await ScriptedHook.register(agent, "held");
    expect(await quiesced(client, stays, held)).toBe(2);
    held.socket.destroy();
    const identified = client.identify(freshIdentity());
    expect(await stays.next()).toStartWith("forked ");
    stays.say("done");
    expect((await identified).hooks).toEqual([
      { name: "stays", pid: process.pid, ok: true, text: "" },
      { name: "held", pid: process.pid, ok: false, text: "it has ended" },
    ]);
    client.release();
    expect(await stays.next()).toBe("go");
    expect(await quiesced(client, stays)).toBe(1);
  });

  test("is told to go on when the host that froze it went before it was ready", async () => {
    await using agent = await AgentUnderTest.start({ identity: true });
    using hook = await ScriptedHook.register(agent, "left");
    const { client: first } = await agent.client();
    const lost = rejection(first.quiesce());
    expect(await hook.next()).toBe("prepare");
    first.close();
    await lost;
    expect(await hook.next()).toBe("resume");
    hook.say("ready"); // for the one that went
    const { client } = await agent.client();
    expect(await client.run(["echo", "awake"])).toMatchObject({ stdout: "awake\n" });
    expect(await quiesced(client, hook)).toBe(1);
  });

  test("is refused what a program of the guest must not get", async () => {
    await using agent = await AgentUnderTest.start({ identity: true });
    const { client } = await agent.client();
    const { pid } = process;
    const bad = [
      "hello",
      "hook",
      "hook x",
      `hook ${"n".repeat(33)} ${pid}`,
      `hook a/b ${pid}`,
      `hook x ${pid} 65`,
    ];
    bad.push(`hook x ${pid} 9 9`, "hook x 1", "hook x -1", `hook x ${agent.pid} 9`, `hook x ${process.ppid}`);
    bad.push(`hook x ${pid}\nready`, `hook ${"x".repeat(600)}`, "\0".repeat(600));
    for (const line of bad) {
      using hook = await ScriptedHook.connect(agent);
      hook.say(line);
      let last: string | undefined = "";
      for (let next = await hook.next(); next !== undefined; next = await hook.next()) last = next;
      if (/^hook x \d+( 9)?$/.test(line)) expect(last).toMatch(/^error /);
    }
    expect(agent.alive).toBe(true); // none of them had it raise a signal
    expect(await client.quiesce()).toEqual({ hooks: 0 });
  });

  test("is one of at most 64 connections", async () => {
    await using agent = await AgentUnderTest.start({ identity: true });
    const { client } = await agent.client();
    using stack = new DisposableStack();
    const hooks: ScriptedHook[] = [];
    for (let i = 0; i < 64; i++) hooks.push(stack.use(await ScriptedHook.register(agent, `hook-${i}`)));
    using tooMany = await ScriptedHook.connect(agent);
    expect(await tooMany.next()).toBeUndefined();
    expect(await rejection(client.exec(["true"], { hook: true }))).toMatchObject({ errno: "EMFILE" });
    expect(await quiesced(client, ...hooks)).toBe(64);
    const identified = client.identify(freshIdentity());
    for (const hook of hooks) {
      await hook.next();
      hook.say(`done ${"e".repeat(400)}`);
    }
    const receipt = await identified;
    expect(receipt.hooks.map(({ ok, text }) => ok && text.length)).toEqual(hooks.map(() => 256));
  });
});

describe("exec() with a hook", () => {
  // As small as they come: a shell that waits on descriptor 3 and nowhere else.
  const script = `
    echo "hook shell $$ 10" >&3
    trap 'echo signalled' USR1
    # A signal interrupts a read in the shell.
    while read -r word rest <&3 || read -r word rest <&3; do
      case $word in
        prepare) echo ready >&3 ;;
        forked) echo "done \${rest##* }" >&3 ;;
      esac
      echo "$word"
      [ "$word" != go ] || break
    done`;

  test("gives a program descriptor 3, and raises the signal that it asked for", async () => {
    await using agent = await AgentUnderTest.start({ identity: true });
    const { client } = await agent.client();
    // It has to outlive its operation, since a VM with operations is not frozen.
    const start = `setsid sh -c '${script.replaceAll("'", `'\\''`)}' >"$1" 2>&1 </dev/null &`;
    const log = `${agent.directory}/log`;
    const result = await client.run(["sh", "-c", `${start}\necho $FLURRY_FORK_FD`, "sh", log], {
      hook: true,
    });
    expect(result).toMatchObject({ code: 0, stdout: "3\n" });
    const words = async () => (await client.run(["cat", log])).stdout.split("\n");
    while (!(await words()).includes("ok")) await client.ping();
    expect(await client.quiesce()).toEqual({ hooks: 1 });
    const [hook] = (await client.identify(freshIdentity())).hooks;
    expect(hook).toMatchObject({ name: "shell", ok: true, text: expect.stringMatching(/^[0-9a-f]{64}$/) });
    client.release();
    while (!(await words()).includes("go")) await client.ping();
    const said = await words();
    expect(said.filter((word) => word !== "signalled")).toEqual(["ok", "prepare", "forked", "go", ""]);
    expect(said).toContain("signalled");
  });

  test("gives no descriptor without it", async () => {
    await using agent = await AgentUnderTest.start({ identity: true });
    const { client } = await agent.client();
    expect((await client.run(["sh", "-c", "echo x >&3"])).code).not.toBe(0);
    expect((await client.run(["sh", "-c", 'echo "$FLURRY_FORK_FD"'])).stdout).toBe("\n");
  });
});
