import { expect, test } from "bun:test";
import { FlurryClient } from "../../runtime/client/mod.ts";
import { GatewaySandbox, idleRuntime } from "../support/gateway-sandbox.ts";
import { ScriptedVms } from "../support/scripted-vms.ts";

async function all<T>(items: AsyncIterable<T>): Promise<T[]> {
  return await Array.fromAsync(items);
}

test("client and gateway: a VM from its making to its end", async () => {
  const vms = new ScriptedVms();
  vms.script = async ({ input, print }) => {
    await print(await input());
    await print(new Uint8Array([0xff]), "stderr");
    return { code: 3 };
  };
  await using gateway = await GatewaySandbox.open({ runtime: () => ({ ...idleRuntime(), vms }) });
  const client = new FlurryClient({ url: gateway.url });
  const vm = await client.vms.create({ worker: { image: "base", memoryMiB: 128 } });
  expect(await client.vms.get(vm.id)).toEqual(vm);

  vms.failing = (index) => (index === 2 ? new Error("no") : undefined);
  const [first, second] = await client.vms.fork(vm.id, 2);
  expect(first).toMatchObject({ status: "fulfilled", vm: { parent: vm.id, generation: 1 } });
  expect(second).toMatchObject({ status: "rejected", error: { code: "INTERNAL" } });
  expect((await all(client.vms.list())).map(({ id }) => id)).toEqual(["vm-1", "vm-2"]);

  const program = { argv: ["cat"], stdin: "ä" };
  expect(await client.vms.exec(vm.id, program)).toMatchObject({ exitCode: 3, stdout: "ä", stderr: "\ufffd" });
  const pieces = await all(client.vms.execStream(vm.id, program));
  expect(pieces.at(-1)).toEqual({ exitCode: 3 });
  expect(pieces).toContainEqual({ stream: "stderr", bytes: new Uint8Array([0xff]) });

  const content = new Uint8Array(300_000).map((_, at) => at % 253);
  const written = await client.vms.writeFile(vm.id, "/a dir/ä?", content, { mode: 0o755 });
  expect(written).toEqual({ path: "/a dir/ä?", size: content.byteLength });
  const { stream, mode } = await client.vms.readFile(vm.id, "/a dir/ä?");
  expect(mode).toBe(0o755);
  expect(new Uint8Array(await new Response(stream).arrayBuffer())).toEqual(content);
  await client.vms.writeFile(vm.id, "/empty", "");
  expect(vms.files.get(`${vm.id} /empty`)?.bytes.byteLength).toBe(0);
  await expect(client.vms.readFile(vm.id, "/none")).rejects.toMatchObject({ code: "FILE_NOT_FOUND" });

  const kept = await client.vms.checkpoint(vm.id, "warm");
  expect(await all(client.vms.checkpoints())).toEqual([kept]);
  expect(await client.vms.getCheckpoint("warm")).toEqual(kept);
  const woken = await client.vms.create({ checkpoint: "warm" });
  expect(woken.checkpoint).toBe("warm");
  await client.vms.removeCheckpoint("warm");
  await expect(client.vms.getCheckpoint("warm")).rejects.toMatchObject({ code: "CHECKPOINT_NOT_FOUND" });
  expect(await client.vms.kill(vm.id)).toEqual(["vm-1", "vm-2"]);
  await expect(client.vms.get(vm.id)).rejects.toMatchObject({ code: "VM_NOT_FOUND" });
});
