/**
 * A runtime in mid-run, for tests to kill: children that work, shells that wait, a VM that boots. Says
 * which processes it has, as one line of JSON, and goes on until it is killed.
 */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { bootVm } from "../../runtime/fork/boot.ts";
import { Host } from "../../runtime/vm/host.ts";
import { baseImage, baseParent, tracesOf } from "./vm.ts";

const host = await Host.open();
const parent = await baseParent(host);
await parent.shells.keep(2);
const children = await Promise.all(
  [0, 1].map((index) => parent.fork({ identity: { index, hostname: `busy-${index}` } })),
);
const commands = await Promise.all(children.map((child) => child.agent.exec(["/bin/sleep", "1000"])));
await parent.shells.keep(2);

// Does not die with its parent, as a QEMU does: only whoever looks for it finds it.
const survivor = spawn("tail", ["-f", "/dev/null", `${host.owner.vmDir()}/q`], {
  detached: true,
  stdio: "ignore",
});
await once(survivor, "spawn");

const image = await baseImage();
const profile = { accel: "tcg", memMiB: 128, cpus: 1, disk: image.disk } as const;
const booting = bootVm({ host, profile, boot: image, ram: "shared", onConsoleLine: () => undefined });
while (tracesOf(host).processes.length < 6) await new Promise((resolve) => setTimeout(resolve, 5));

const { processes, files } = tracesOf(host);
process.stdout.write(`${JSON.stringify({ processes, files, survivor: survivor.pid })}\n`);
await Promise.all([booting, ...commands.map((command) => command.exited), once(survivor, "exit")]);
