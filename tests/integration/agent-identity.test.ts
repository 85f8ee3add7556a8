import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { hostname } from "node:os";
import { join } from "node:path";
import { AgentError } from "../../guest-agent/protocol/mod.ts";
import { freshIdentity } from "../support/agent-identity.ts";
import { rejection } from "../support/agent-peer.ts";
import { AgentUnderTest } from "../support/agent-process.ts";

// A bound for a machine that has other things to do, no expectation.
setDefaultTimeout(60_000);

describe("an agent that is an ordinary process", () => {
  test("reads back what it has set, below its own root, and leaves its machine alone", async () => {
    const before = ["/etc/machine-id", "/proc/sys/kernel/random/boot_id"].map(content);
    await using agent = await AgentUnderTest.start({ identity: true });
    const { client } = await agent.client();
    await client.quiesce();
    const sent = freshIdentity({ hostname: "child-3", index: 3, realtimeNs: 1_000_000_000_000_000_000n });
    const receipt = await client.identify(sent);
    const { hostname: name, index, vmId, machineId, bootId } = sent;
    expect(receipt).toMatchObject({
      hostname: name,
      index,
      vmId,
      machineId,
      bootId,
      hooks: [],
      vmGenId: false,
    });
    // What only PID 1 may do was not done, and is not said to have been.
    expect(receipt).toMatchObject({ entropyBytes: 0, reseeded: false, sshKey: undefined });
    expect(receipt.realtimeNs - receipt.beforeNs).toBeLessThan(60_000_000_000n);
    expect(Math.abs(Number(receipt.realtimeNs / 1_000_000n) - Date.now())).toBeLessThan(60_000);
    expect(readFileSync(join(agent.root, "etc/machine-id"), "utf8")).toBe(`${machineId}\n`);
    expect(readFileSync(join(agent.root, "run/flurry/boot_id"), "utf8")).toBe(`${bootId}\n`);
    expect(["/etc/machine-id", "/proc/sys/kernel/random/boot_id"].map(content)).toEqual(before);
    expect(hostname()).not.toBe(name);
    expect(existsSync("/run/flurry/fork.sock")).toBe(false);
  });

  test("draws another number for every identity", async () => {
    await using agent = await AgentUnderTest.start({ identity: true });
    const { client } = await agent.client();
    const draws = new Set<string>();
    for (let i = 0; i < 20; i++) draws.add((await client.identify(freshIdentity())).draw.join());
    expect(draws.size).toBe(20);
  });

  test("replaces the SSH host keys that an image has by the one that it is given", async () => {
    await using agent = await AgentUnderTest.start({ identity: true });
    const { client } = await agent.client();
    const ssh = join(agent.root, "etc/ssh");
    const sshKey = { private: "PRIVATE\n", public: "ssh-ed25519 AAAA root@child\n" };
    expect((await client.identify(freshIdentity({ sshKey }))).sshKey).toBeUndefined();
    expect(existsSync(ssh)).toBe(false);
    mkdirSync(ssh);
    for (const name of ["ssh_host_rsa_key", "ssh_host_rsa_key.pub", "ssh_host_ed25519_key", "sshd_config"])
      writeFileSync(join(ssh, name), "the parent's");
    expect((await client.identify(freshIdentity({ sshKey }))).sshKey).toBe("ssh-ed25519 AAAA root@child");
    expect(readdirSync(ssh).sort()).toEqual([
      "ssh_host_ed25519_key",
      "ssh_host_ed25519_key.pub",
      "sshd_config",
    ]);
    expect(readFileSync(join(ssh, "ssh_host_ed25519_key"), "utf8")).toBe(sshKey.private);
    expect(statSync(join(ssh, "ssh_host_ed25519_key")).mode & 0o777).toBe(0o600);
    // Without one to put in their place they go all the same: no child has its parent's.
    expect((await client.identify(freshIdentity())).sshKey).toBe("");
    expect(readdirSync(ssh)).toEqual(["sshd_config"]);
    expect((await client.identify(freshIdentity({ sshKey }))).sshKey).toBeUndefined();
  });

  test("survives that somebody cuts the files of its ids short before a fork", async () => {
    await using agent = await AgentUnderTest.start({ identity: true });
    const { client } = await agent.client();
    for (let round = 0; round < 2; round++) {
      for (const name of ["etc/machine-id", "run/flurry/boot_id"]) writeFileSync(join(agent.root, name), "");
      await client.quiesce();
      const sent = freshIdentity();
      const { machineId, bootId } = await client.identify(sent);
      expect({ machineId, bootId }).toEqual({ machineId: sent.machineId, bootId: sent.bootId });
      client.release();
    }
  });
});

describe("a guest at rest", () => {
  test("takes an identity and its release and nothing else, whoever the host is", async () => {
    await using agent = await AgentUnderTest.start({ identity: true });
    const { client: first } = await agent.client();
    await first.quiesce();
    first.close();
    const { client } = await agent.client();
    await client.ping();
    await client.hello();
    const file = join(agent.directory, "file");
    for (const refused of [client.exec(["true"]), client.putFile(file, "x"), client.list(agent.directory)])
      expect(await rejection(refused)).toMatchObject({ code: "AGENT_REFUSED", remote: "STATE" });
    // A host may look at files for itself, also at a part of one, and that holds nothing up.
    const machineId = join(agent.root, "etc/machine-id");
    expect(await new Response(client.getFile(machineId)).text()).toBe(readFileSync(machineId, "utf8"));
    const large = join(agent.directory, "large");
    writeFileSync(large, new Uint8Array(1 << 20));
    expect((await new Response(client.getFile(large)).bytes()).length).toBe(1 << 20);
    const reader = client.getFile(large).getReader();
    await reader.read();
    await reader.cancel();
    while ((await client.quiesce().catch(isBusy))?.hooks !== 0) await client.ping();
    await client.identify(freshIdentity());
    expect(await rejection(client.identify(freshIdentity()))).toMatchObject({ remote: "STATE" });
    expect(await rejection(client.exec(["true"]))).toMatchObject({ remote: "STATE" });
    client.release({ realtimeNs: 0n });
    expect((await client.run(["echo", "awake"])).stdout).toBe("awake\n");
    expect(Date.now()).toBeGreaterThan(1e12); // the clock is this machine's
  });

  test("is ended without a grace, in which its programs could do something", async () => {
    await using agent = await AgentUnderTest.start({ identity: true });
    const { client } = await agent.client();
    await client.quiesce();
    await client.shutdown({ graceMs: 60_000 });
    await agent.exited;
    expect(agent.process.exitCode).toBe(0);
  });
});

function isBusy(error: unknown): undefined {
  if (!(error instanceof AgentError) || error.remote !== "BUSY") throw error;
}

function content(path: string): string | undefined {
  return existsSync(path) ? readFileSync(path, "utf8") : undefined;
}
