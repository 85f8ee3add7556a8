import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Image } from "../../guest-agent/image/mod.ts";
import { freshIdentity } from "../support/agent-identity.ts";
import { AgentVm } from "../support/agent-vm.ts";
import { baseImage, SETUP_MS, TEST_MS } from "../support/vm.ts";

let image: Image;
let vm: AgentVm;

beforeAll(async () => {
  image = await baseImage();
  vm = await AgentVm.start(image);
}, SETUP_MS);

afterAll(() => vm[Symbol.asyncDispose]());

describe("the agent as PID 1", () => {
  test(
    "answers a host that spoke before the machine had booted",
    async () => {
      const { client } = await vm.client();
      await using _ = client;
      const info = await client.hello({ timeoutMs: TEST_MS });
      expect(info).toMatchObject({ protocol: 3, pid: 1, hostname: "flurry" });
      expect(info.memBytes).toBeGreaterThan(128 << 20);
      expect(info.memBytes).toBeLessThan(256 << 20);
      expect(info.bootNs).toBeGreaterThan(0);
    },
    TEST_MS,
  );

  test(
    "has made a root that can be written, and what programs expect around it",
    async () => {
      const { client } = await vm.client();
      await using _ = client;
      const sh = async (script: string) => (await client.run(["sh", "-c", script])).stdout.trim();
      expect(await sh("touch /usr/x && ls /usr/x")).toBe("/usr/x");
      expect(
        await sh("while read -r _ at type _; do echo $at:$type; done < /proc/mounts | sort | tr '\\n' ' '"),
      ).toBe(
        [
          "/:overlay",
          "/dev/pts:devpts",
          "/dev/shm:tmpfs",
          "/dev:devtmpfs",
          "/etc/machine-id:tmpfs",
          "/proc/sys/kernel/random/boot_id:tmpfs",
          "/proc:proc",
          "/run:tmpfs",
          "/sys/fs/cgroup:cgroup2",
          "/sys:sysfs",
          "/tmp:tmpfs",
        ].join(" "),
      );
      expect(await sh("stat -c %a /tmp /dev/shm | tr '\\n' ' '")).toBe("1777 1777");
      expect(await sh("readlink /dev/fd /dev/stdin /dev/ptmx | tr '\\n' ' '")).toBe(
        "/proc/self/fd /proc/self/fd/0 pts/ptmx",
      );
      expect(await sh("cat <<E | cat /dev/fd/0\nthrough\nE")).toBe("through");
      expect(Number.parseInt(await sh("cat /sys/class/net/lo/flags"), 16) & 1).toBe(1); // IFF_UP
    },
    TEST_MS,
  );

  test(
    "gives its machine the identity that it was told, as the kernel and the files say, again and again",
    async () => {
      const { client } = await vm.client();
      await using _ = client;
      const draws = new Set<string>();
      for (const ahead of [3_600_000, 0]) {
        await client.quiesce();
        const sent = freshIdentity({
          hostname: `child-${ahead}`,
          index: 41,
          realtimeNs: BigInt(Date.now() + ahead) * 1_000_000n,
        });
        const receipt = await client.identify(sent);
        client.release();
        const { hostname, index, vmId, machineId, bootId } = sent;
        expect(receipt).toMatchObject({
          hostname,
          index,
          vmId,
          machineId,
          bootId,
          entropyBytes: 64,
          hooks: [],
        });
        expect(receipt).toMatchObject({ reseeded: true, vmGenId: false });
        expect(receipt.realtimeNs).toBeGreaterThanOrEqual(sent.realtimeNs);
        expect(receipt.tookNs).toBeGreaterThanOrEqual(receipt.kernelNs);
        draws.add(Buffer.from(receipt.draw).toString("hex"));
        const script = "uname -n; cat /etc/machine-id /proc/sys/kernel/random/boot_id; date +%s";
        const { stdout } = await client.run(["sh", "-c", script]);
        const [name, machine, boot, seconds] = stdout.split("\n");
        expect({ name, machine, boot }).toEqual({ name: hostname, machine: machineId, boot: bootId });
        const off = Number(seconds) - (Date.now() + ahead) / 1000;
        expect(Math.abs(off)).toBeLessThan(TEST_MS / 1000);
      }
      expect(draws.size).toBe(2);
    },
    TEST_MS,
  );

  test(
    "holds every process from the rest on until the release, also one that is never found twice",
    async () => {
      const { client } = await vm.client();
      await using _ = client;
      // Writes down when it runs, over and over; the second does it as another process each time.
      await client.putFile(
        "/tmp/loop",
        "while :; do read up _ </proc/uptime; echo $up >>/tmp/looped; done\n",
      );
      await client.putFile(
        "/tmp/chain",
        "read up _ </proc/uptime; echo $up >>/tmp/chained\nsh /tmp/chain &\n",
      );
      await client.run(["sh", "-c", "for f in loop chain; do setsid sh /tmp/$f <&- >&- 2>&- & done"]);
      const times = async (name: string) =>
        (await client.run(["cat", `/tmp/${name}`])).stdout.trim().split("\n").map(Number);
      const now = async () => (await client.hello()).nowNs / 1e9;
      for (const name of ["looped", "chained"]) while ((await times(name)).length < 5) await client.ping();
      for (let round = 0; round < 2; round++) {
        expect(await client.quiesce()).toEqual({ hooks: 0 });
        const from = await now();
        let to = from;
        while (to < from + 0.3) to = await now(); // a third of a second of the guest's own time
        if (round === 1) await client.identify(freshIdentity());
        to = await now();
        client.release();
        for (const name of ["looped", "chained"]) {
          let seen = await times(name);
          while (seen.at(-1)! <= to) seen = await times(name);
          // /proc/uptime has hundredths of a second, cut off.
          expect(seen.filter((time) => time > from + 0.01 && time < to - 0.01)).toEqual([]);
          expect(seen.some((time) => time <= from)).toBe(true);
        }
      }
      await client.run([
        "sh",
        "-c",
        "rm /tmp/chain; kill -9 $(grep -lx sh /proc/[0-9]*/comm | cut -d/ -f3 | grep -vx $$)",
      ]);
      await client.quiesce();
      client.release();
    },
    TEST_MS,
  );

  test(
    "leaves a process with a hook out of the freezer, and tells it of the fork",
    async () => {
      const { client } = await vm.client();
      await using _ = client;
      const hook = `echo "hook sh $$" >&3
        while read -r word rest <&3; do
          case $word in
            prepare) echo ready >&3 ;;
            forked) echo "done $(cat /proc/$$/cgroup)" >&3 ;;
            go) exit ;;
          esac
        done`;
      await client.putFile("/tmp/hook", hook);
      await client.run(["sh", "-c", "setsid sh /tmp/hook <&- >&- 2>&- & sleep 1000 <&- >&- 2>&- &"], {
        hook: true,
      });
      for (;;) {
        const { hooks } = await client.quiesce();
        if (hooks === 1) break;
        client.release();
      }
      const [receipt] = (await client.identify(freshIdentity())).hooks;
      client.release();
      expect(receipt).toMatchObject({ name: "sh", ok: true, text: "0::/" });
      expect((await client.run(["cat", "/sys/fs/cgroup/flurry-held/cgroup.procs"])).stdout).not.toBe("");
      await client.run(["sh", "-c", "kill -9 $(cat /sys/fs/cgroup/flurry-held/cgroup.procs)"]);
    },
    TEST_MS,
  );

  test(
    "reaps orphans",
    async () => {
      const { client } = await vm.client();
      await using _ = client;
      await client.run(["sh", "-c", "for i in 1 2 3 4 5; do (sleep 0 & ) ; done"]);
      for (;;) {
        const { stdout } = await client.run(["sh", "-c", "grep -l '^State:.Z' /proc/[0-9]*/status"]);
        if (stdout === "") break;
      }
    },
    TEST_MS,
  );

  test(
    "answers every new host, however quickly they take turns and whatever they leave behind",
    async () => {
      for (let turn = 0; turn < 100; turn++) {
        const { client, socket } = await vm.client();
        await using _ = client;
        await client.ping({ timeoutMs: TEST_MS });
        if (turn % 4 === 1) await (await client.exec(["yes"])).stdout.getReader().read();
        if (turn % 4 >= 1) socket.write(Uint8Array.of(0, 0, 0xff, 0, 1, 2, 3));
      }
      const { client } = await vm.client();
      await using _ = client;
      await client.quiesce();
      client.release();
      for (;;) {
        const { stdout } = await client.run(["sh", "-c", "grep -lx yes /proc/[0-9]*/comm"]);
        if (stdout === "") break;
      }
    },
    TEST_MS,
  );

  test(
    "moves files in and out of the machine",
    async () => {
      const { client } = await vm.client();
      await using _ = client;
      const bytes = Uint8Array.from({ length: 5 << 20 }, (_, i) => (i * 31 + (i >> 9)) & 255);
      await client.putFile("/data/in/a", bytes);
      expect(Buffer.from(await new Response(client.getFile("/data/in/a")).bytes()).equals(bytes)).toBe(true);
      const paths = (await client.list("/data")).map((entry) => entry.path);
      expect(paths).toEqual(["in", "in/a"]);
    },
    TEST_MS,
  );

  test(
    "powers the machine off",
    async () => {
      const { client } = await vm.client();
      await client.exec(["sleep", "1000"]);
      await client.shutdown();
      await vm.exited;
      expect(vm.process.exitCode).toBe(0);
      expect((await client.closed).code).toBe("AGENT_CLOSED");
    },
    TEST_MS,
  );
});

test(
  "a boot that fails says why on the console and powers off",
  async () => {
    const directory = mkdtempSync(join(tmpdir(), "flurry-disk-"));
    try {
      const disk = join(directory, "garbage");
      writeFileSync(disk, new Uint8Array(1 << 20));
      await using broken = await AgentVm.start(image, { disk });
      await broken.exited;
      expect(broken.process.exitCode).toBe(0);
      expect(broken.console).toMatch(/flurry-init: Cannot mount the root disk \/dev\/vda .*EINVAL/);
    } finally {
      rmSync(directory, { recursive: true, force: true });
    }
  },
  TEST_MS,
);
