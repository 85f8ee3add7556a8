import { afterAll, afterEach, beforeAll, describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { hashMemory } from "../../memserver/image/memory-image.ts";
import { type Child, privateBytesOf } from "../../runtime/fork/child.ts";
import type { Parent } from "../../runtime/fork/parent.ts";
import { Host } from "../../runtime/vm/host.ts";
import {
  baseParent,
  NO_TRACES,
  openDescriptors,
  openedSince,
  SETUP_MS,
  TEST_MS,
  tracesOf,
} from "../support/vm.ts";

const MIB = 1024 * 1024;

let host: Host;
let parent: Parent;

beforeAll(async () => {
  host = await Host.open();
  parent = await baseParent(host);
}, SETUP_MS);

afterEach(() => {
  expect(tracesOf(host)).toEqual(NO_TRACES);
});

afterAll(async () => {
  await parent[Symbol.asyncDispose]();
  await host[Symbol.asyncDispose]();
});

/** Children that are gone at the end of the block. */
async function family(count: number): Promise<{ children: Child[] } & AsyncDisposable> {
  await using stack = new AsyncDisposableStack();
  const identities = Array.from({ length: count }, (_, index) => ({ index, hostname: `child-${index}` }));
  const children = await Promise.all(
    identities.map(async (identity) => stack.use(await parent.fork({ identity }))),
  );
  const owned = stack.move();
  return { children, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}

describe("fork()", () => {
  test(
    "gives a child that runs programs under its own name",
    async () => {
      await using child = await parent.fork({ identity: { index: 7, hostname: "seven" } });
      expect(await child.agent.run(["/bin/uname", "-n"])).toMatchObject({ code: 0, stdout: "seven\n" });
      expect(child.id).toMatch(/^vm-[0-9a-f]{12}$/);
      expect(child.times.warm).toBe(false);
      expect(child.times.answerMs).toBeGreaterThanOrEqual(child.times.runningMs);
    },
    TEST_MS,
  );

  test(
    "gives siblings that are equal in nothing that tells machines apart, each as it was told",
    async () => {
      await using siblings = await family(2);
      const script = `cat /etc/machine-id /proc/sys/kernel/random/boot_id /proc/sys/kernel/random/uuid
        head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \\n'`;
      const told = await Promise.all(
        siblings.children.map(async ({ agent, proof: { sent, read } }) => {
          const { stdout } = await agent.run(["/bin/sh", "-c", script]);
          const [machineId, bootId, uuid, bytes] = stdout.trim().split("\n");
          expect({ machineId, bootId }).toEqual({ machineId: sent.machineId, bootId: sent.bootId });
          expect(bytes).toMatch(/^[0-9a-f]{64}$/);
          return [machineId, bootId, uuid, bytes, read.draw.join(), read.hostname, read.vmId];
        }),
      );
      expect(new Set(told.flat()).size).toBe(14);
    },
    TEST_MS,
  );

  test(
    "gives a child without any network but its own",
    async () => {
      await using child = await parent.fork({ identity: { index: 0, hostname: "alone" } });
      const { stdout } = await child.agent.run(["/bin/ls", "/sys/class/net"]);
      expect(
        stdout
          .trim()
          .split("\n")
          .filter((name) => name !== "lo"),
      ).toEqual([]);
      const { stdout: classes } = await child.agent.run([
        "/bin/sh",
        "-c",
        "cat /sys/bus/pci/devices/*/class",
      ]);
      expect(classes).toContain("0x0100"); // the disk is there
      expect(classes.split("\n").filter((name) => name.startsWith("0x02"))).toEqual([]);
    },
    TEST_MS,
  );

  test(
    "gives a child whose QEMU has no privileges",
    async () => {
      await using child = await parent.fork({ identity: { index: 0, hostname: "small" } });
      const status = readFileSync(`/proc/${child.pid}/status`, "utf8");
      expect(status).toMatch(/^NoNewPrivs:\t1$/m);
      expect(status).toMatch(/^Seccomp:\t2$/m);
      expect(status).toMatch(/^CapEff:\t0+$/m);
      expect(/^Uid:\t(.*)$/m.exec(status)![1]!.split("\t")).not.toContain("0");
    },
    TEST_MS,
  );

  test(
    "gives children that do not see one another's writes",
    async () => {
      await using siblings = await family(3);
      const { children } = siblings;
      await Promise.all(children.map((child) => child.agent.putFile("/tmp/mine", child.identity.hostname)));
      const read = await Promise.all(children.map((child) => child.agent.run(["/bin/cat", "/tmp/mine"])));
      expect(read.map((result) => result.stdout)).toEqual(["child-0", "child-1", "child-2"]);
      await using late = await parent.fork({ identity: { index: 3, hostname: "late" } });
      expect((await late.agent.run(["/bin/cat", "/tmp/mine"])).code).toBe(1);
    },
    TEST_MS,
  );

  test(
    "leaves the memory image as it was when 16 children have written",
    async () => {
      const { ram } = parent.descriptor;
      const before = await hashMemory(parent.imagePath);
      expect(before).toBe(ram.hash!);
      {
        await using siblings = await family(16);
        await Promise.all(
          siblings.children.map(async (child) => {
            const write = "dd if=/dev/vda of=/tmp/x bs=1M count=24 2>/dev/null && stat -c %s /tmp/x";
            expect(await child.agent.run(["/bin/sh", "-c", write])).toMatchObject({
              stdout: `${24 * MIB}\n`,
            });
          }),
        );
        // It is their own memory that holds it.
        for (const child of siblings.children) {
          expect(privateBytesOf(child.pid)).toBeGreaterThan(24 * MIB);
          expect(child.privateBytes()).toBeGreaterThan(24 * MIB);
        }
        expect(await hashMemory(parent.imagePath)).toBe(before);
      }
      expect(await hashMemory(parent.imagePath)).toBe(before);
    },
    TEST_MS,
  );

  test(
    "leaves no process, socket or file behind in 200 forks",
    async () => {
      // What a runtime opens once and for all is open then.
      await family(2).then((siblings) => siblings[Symbol.asyncDispose]());
      const before = openDescriptors();
      await parent.shells.keep(4);
      let next = 0;
      const names = new Set<string>();
      async function forkOneAfterAnother(): Promise<void> {
        while (next < 200) {
          const index = next++;
          await using child = await parent.fork({ identity: { index, hostname: `fork-${index}` } });
          names.add(child.id);
          expect(tracesOf(host).processes).toContain(child.pid);
        }
      }
      await Promise.all([forkOneAfterAnother(), forkOneAfterAnother(), forkOneAfterAnother()]);
      expect(names.size).toBe(200);
      await parent.shells[Symbol.asyncDispose]();
      expect(tracesOf(host)).toEqual(NO_TRACES);
      expect(openedSince(before)).toEqual([]);
    },
    TEST_MS,
  );
});

describe("a child", () => {
  test(
    "is dead for whoever works with it when its QEMU is killed",
    async () => {
      await using child = await baseChild();
      const command = await child.agent.exec(["/bin/sleep", "1000"]);
      process.kill(child.pid, "SIGKILL");
      await child.exited;
      const error = await command.exited.then(
        () => undefined,
        (reason: unknown) => reason,
      );
      expect(await child.explain(error)).toMatchObject({
        code: "CHILD_DIED",
        message: expect.stringContaining(`${child.id} died: QEMU (pid ${child.pid}) was killed by SIGKILL`),
      });
    },
    TEST_MS,
  );
});

/** A child of a parent of its own, since the shells of the other one are spent. */
async function baseChild(): Promise<Child> {
  await using own = await baseParent(host);
  return await own.fork({ identity: { index: 0, hostname: "mortal" } });
}
