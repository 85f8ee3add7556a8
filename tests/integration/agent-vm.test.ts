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
      expect(info).toMatchObject({ protocol: 2, pid: 1, hostname: "flurry" });
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
    "gives its machine the identity that it was told, as the kernel says",
    async () => {
      const { client } = await vm.client();
      await using _ = client;
      expect(await client.identify(freshIdentity({ hostname: "child-41", index: 41 }))).toMatchObject({
        hostname: "child-41",
        index: 41,
      });
      expect((await client.run(["cat", "/proc/sys/kernel/hostname"])).stdout).toBe("child-41\n");
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
