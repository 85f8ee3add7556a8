import { afterAll, afterEach, beforeAll, describe, expect, test } from "bun:test";
import { rmSync } from "node:fs";
import type { Clock } from "../../runtime/clock.ts";
import { type BootedVm, bootVm } from "../../runtime/fork/boot.ts";
import { type ChildObserver, type Proof, watchChildren } from "../../runtime/fork/child-watch.ts";
import { forkRetrying } from "../../runtime/fork/fork-retrying.ts";
import { freeze } from "../../runtime/fork/freeze.ts";
import type { UnprovenError, UnprovenField } from "../../runtime/fork/identity.ts";
import { type GuestImage, openParent } from "../../runtime/fork/open-parent.ts";
import { Parent } from "../../runtime/fork/parent.ts";
import { Host } from "../../runtime/vm/host.ts";
import type { MachineProfile } from "../../runtime/vm/profile.ts";
import { rejection } from "../support/agent-peer.ts";
import { sabotagedImage } from "../support/agent-sabotaged.ts";
import { baseImage, NO_TRACES, SETUP_MS, TEST_MS, tracesOf } from "../support/vm.ts";

let host: Host;
let stack: AsyncDisposableStack;
let image: GuestImage;
/** Its agent leaves out what host names say. One process of it waits in a hook; it has SSH host keys. */
let parent: Parent;

/** Tells as its evidence the random bytes that it is given. */
const HOOK = `echo "hook app $$" >&3
read -r answer <&3
: > /run/registered
while read -r word vm index bytes <&3; do
  case $word in
    prepare) echo ready >&3 ;;
    forked) echo "done $bytes" >&3 ;;
  esac
done`;

const prepare = async (vm: BootedVm) => {
  const start = "sh /opt/hook < /dev/null > /dev/null 2>&1 & until [ -e /run/registered ]; do :; done";
  await vm.agent.run(["/bin/sh", "-c", start], { hook: true });
};

beforeAll(async () => {
  stack = new AsyncDisposableStack();
  host = stack.use(await Host.open());
  const base = await baseImage();
  image = stack.use(await sabotagedImage(base));
  const files = [
    { path: "/opt/hook", data: Buffer.from(HOOK), mode: 0o755 },
    { path: "/etc/ssh/ssh_host_ed25519_key", data: Buffer.from("the parent's\n"), mode: 0o600 },
    { path: "/etc/ssh/ssh_host_ed25519_key.pub", data: Buffer.from("ssh-ed25519 parent\n"), mode: 0o644 },
    { path: "/etc/ssh/ssh_host_rsa_key", data: Buffer.from("the parent's, too\n"), mode: 0o600 },
  ];
  const options = { host, image, memMiB: 128, files, fresh: true };
  parent = stack.use((await openParent({ ...options, preparation: { key: ["hook"], prepare } })).parent);
}, SETUP_MS);

afterEach(() => {
  expect(tracesOf(host)).toEqual(NO_TRACES);
});

afterAll(async () => {
  await stack.disposeAsync();
}, TEST_MS);

/** What is told of children meanwhile. */
function watched(): ChildObserver & Disposable & { proofs: Proof[]; refusals: UnprovenError[] } {
  const proofs: Proof[] = [];
  const refusals: UnprovenError[] = [];
  const observer: ChildObserver = {
    proven: (proof) => void proofs.push(proof),
    unproven: (error) => void refusals.push(error),
  };
  const watch = watchChildren(host, observer);
  return { ...observer, proofs, refusals, [Symbol.dispose]: () => watch[Symbol.dispose]() };
}

function fork(hostname: string, options: { timeoutMs?: number; secondLook?: boolean } = {}) {
  return parent.fork({ identity: { index: 5, hostname }, secondLook: true, ...options });
}

describe("a child whose agent", () => {
  test.each<[string, UnprovenField]>([
    ["hostname", "hostname"],
    ["index", "index"],
    ["vmid", "vmId"],
    ["machineid", "machineId"],
    ["bootid", "bootId"],
    ["clock", "realtimeNs"],
    ["entropy", "entropyBytes"],
    ["reseed", "reseeded"],
    ["draw", "draw"],
    ["ssh", "sshKey"],
    ["hooks", "hooks"],
  ])(
    "leaves out %s is killed for its %s",
    async (step, field) => {
      using seen = watched();
      const skipped = await rejection(fork(`sabotage-skip-${step}-x`));
      expect(skipped).toMatchObject({ code: "CHILD_UNPROVEN", field });
      expect(seen.refusals).toEqual([skipped as UnprovenError]);
      expect(seen.proofs).toEqual([]);
    },
    TEST_MS,
  );

  test.each<[string, UnprovenField]>([
    ["hostname", "hostname"],
    ["machineid", "machineId"],
    ["bootid", "bootId"],
    ["index", "index"],
    // Its hook is told of a VM without a name, and fails.
    ["vmid", "hooks"],
    ["clock", "realtimeNs"],
    ["ssh", "sshKey"],
  ])(
    "lies about %s is killed for its %s",
    async (step, field) => {
      expect(await rejection(fork(`sabotage-lie-${step}-x`))).toMatchObject({
        code: "CHILD_UNPROVEN",
        field,
      });
    },
    TEST_MS,
  );

  // Nobody but the guest itself knows whether it is renewed, until the same comes from another.
  test.each<[string, UnprovenField]>([
    ["reseed", "draw"],
    ["hooks", "hooks"],
  ])(
    "lies about %s is killed for its %s as soon as there is a second one like it",
    async (step, field) => {
      const hostname = `sabotage-lie-${step}-x`;
      const first = await fork(hostname);
      await first[Symbol.asyncDispose]();
      for (let time = 0; time < 2; time++) {
        expect(await rejection(fork(hostname))).toMatchObject({ code: "CHILD_UNPROVEN", field });
      }
    },
    TEST_MS,
  );

  test(
    "lies about the entropy has numbers of its own all the same, by the reseed",
    async () => {
      await using one = await fork("sabotage-lie-entropy-x");
      await using other = await fork("sabotage-lie-entropy-x");
      expect(one.proof.read.draw).not.toEqual(other.proof.read.draw);
    },
    TEST_MS,
  );

  test.each(["hostname", "entropy", "hooks"])(
    "stands still instead of %s is killed at the deadline",
    async (step) => {
      const began = performance.now();
      const error = await rejection(fork(`sabotage-stall-${step}-x`, { timeoutMs: 1500 }));
      expect(error).toMatchObject({ code: "CHILD_UNPROVEN", field: "answer" });
      expect(performance.now() - began).toBeGreaterThanOrEqual(1500);
    },
    TEST_MS,
  );

  test(
    "is honest is let in, and so is the one that takes the place of a liar",
    async () => {
      using seen = watched();
      let forks = 0;
      const names = ["sabotage-skip-clock-x", "sabotage-lie-bootid-x", "honest"];
      const turns: Pick<Parent, "fork"> = {
        fork: ({ identity, ...options }) =>
          parent.fork({ ...options, secondLook: true, identity: { ...identity, hostname: names[forks++]! } }),
      };
      await using child = await forkRetrying(turns, { identity: { index: 5, hostname: "any" } });
      expect(child.identity.hostname).toBe("honest");
      expect(seen.refusals.map(({ field }) => field)).toEqual(["realtimeNs", "bootId"]);
      expect(seen.proofs.map(({ sent }) => sent.vmId)).toEqual([child.id]);
      const ssh = await child.agent.run(["/bin/sh", "-c", "ls /etc/ssh; cat /etc/ssh/*.pub"]);
      const publicKey = child.proof.sent.sshKey!.public;
      expect(ssh.stdout).toBe(`ssh_host_ed25519_key\nssh_host_ed25519_key.pub\n${publicKey}`);
      expect(child.proof.read.sshKey).toBe(publicKey.trim());
    },
    TEST_MS,
  );
});

describe("children", () => {
  test(
    "have nothing in common of what machines are told apart by, and are what their receipts say",
    async () => {
      const look =
        "uname -n; cat /etc/machine-id /proc/sys/kernel/random/boot_id /proc/sys/kernel/random/uuid; " +
        "head -c 16 /dev/urandom | od -An -tx1; echo";
      const names = Array.from({ length: 8 }, (_, index) => `child-${index}`);
      await using all = new AsyncDisposableStack();
      const children = await Promise.all(
        names.map(async (hostname, index) => all.use(await parent.fork({ identity: { index, hostname } }))),
      );
      const seen = await Promise.all(children.map((child) => child.agent.run(["/bin/sh", "-c", look])));
      const lines = seen.map(({ stdout }) => stdout.trim().split("\n"));
      for (const column of [0, 1, 2, 3, 4]) {
        expect(new Set(lines.map((line) => line[column])).size).toBe(8);
      }
      for (const [at, child] of children.entries()) {
        const { hostname, machineId, bootId } = child.proof.read;
        expect(lines[at]!.slice(0, 3)).toEqual([hostname, machineId, bootId]);
      }
    },
    TEST_MS,
  );

  test(
    "of a parent that was frozen an hour ago have the right time, and tell how far it was off",
    async () => {
      const hour = 3_600_000;
      const ahead: Clock = { now: () => Date.now() + hour, monotonic: () => performance.now() };
      await using child = await parent.fork({ identity: { index: 0, hostname: "late" }, clock: ahead });
      const { stdout } = await child.agent.run(["/bin/date", "+%s%3N"]);
      const off = Number(stdout) - ahead.now();
      expect(Math.abs(off)).toBeLessThan(5000);
      const { sent, read } = child.proof;
      const drift = Number(sent.realtimeNs - read.beforeNs) / 1e6;
      const frozen = ahead.now() - parent.descriptor.frozenAt;
      expect(drift).toBeGreaterThan(hour);
      expect(drift).toBeLessThan(frozen + 5000);
    },
    TEST_MS,
  );

  test(
    "of a machine with a generation id are told by their kernel that they are forks",
    async () => {
      const profile: MachineProfile = { ...parent.profile, generationId: true };
      await using own = new AsyncDisposableStack();
      const vm = own.use(await bootVm({ host, profile, boot: image, ram: "shared" }));
      const { descriptor, imagePath } = await freeze(vm, image.hash);
      own.defer(() => rmSync(imagePath));
      await using forked = new Parent({ host, profile, descriptor, imagePath });
      await using child = await forked.fork({ identity: { index: 0, hostname: "generation" } });
      const said = await child.agent.run(["/bin/sh", "-c", "dmesg | grep 'virtual machine fork'"]);
      expect(said.stdout).toContain("crng reseeded due to virtual machine fork");
    },
    TEST_MS,
  );
});
