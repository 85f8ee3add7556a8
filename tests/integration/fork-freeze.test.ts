import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { existsSync, readFileSync } from "node:fs";
import { hashMemory } from "../../memserver/image/memory-image.ts";
import { type BootedVm, bootVm } from "../../runtime/fork/boot.ts";
import type { Child } from "../../runtime/fork/child.ts";
import { type FrozenVm, freeze } from "../../runtime/fork/freeze.ts";
import { Parent } from "../../runtime/fork/parent.ts";
import { Host } from "../../runtime/vm/host.ts";
import type { MachineProfile } from "../../runtime/vm/profile.ts";
import { rejection } from "../support/agent-peer.ts";
import {
  COUNTER_PAGES,
  type CounterEntry,
  mappingOf,
  RAM_COUNTER_SOURCE,
  readCounter,
} from "../support/ram-counter.ts";
import {
  baseImage,
  guestProgram,
  NO_TRACES,
  SETUP_MS,
  stopProcess,
  TEST_MS,
  temporaryDirectory,
  tracesOf,
} from "../support/vm.ts";

const MEM_MIB = 256;
const RAM_BYTES = MEM_MIB * 1024 * 1024;

let host: Host;
let vm: BootedVm;
let profile: MachineProfile;
let imageHash: string;

beforeAll(async () => {
  host = await Host.open();
  const image = await baseImage();
  imageHash = image.hash;
  profile = { accel: "tcg", memMiB: MEM_MIB, cpus: 1, disk: image.disk };
  using directory = temporaryDirectory();
  const program = await guestProgram(RAM_COUNTER_SOURCE, directory.path);
  vm = await bootVm({ host, profile, boot: image, ram: "shared" });
  await vm.agent.putFile("/counter", readFileSync(program), { mode: 0o755 });
}, SETUP_MS);

afterAll(async () => {
  await vm[Symbol.asyncDispose]();
  await host[Symbol.asyncDispose]();
});

function text({ round, page, ns, host: name }: CounterEntry): string {
  return `${round}/${page} ${ns} ${name}`;
}

/** Entries that are not the same in both. There are a million to compare, and as a rule none to show. */
function differences(a: readonly CounterEntry[], b: readonly CounterEntry[]): string[] {
  if (a.length !== b.length) return [`${a.length} entries and ${b.length}`];
  return a.flatMap((x, at) => {
    const y = b[at]!;
    const same = x.round === y.round && x.page === y.page && x.ns === y.ns && x.host === y.host;
    return same ? [] : [`${text(x)} and ${text(y)}`];
  });
}

function isBefore(a: CounterEntry, b: CounterEntry): boolean {
  return a.round < b.round || (a.round === b.round && a.page <= b.page);
}

/** Every write follows the one before it: next page, or first page of the next round, and later in time. */
function breaks(entries: readonly CounterEntry[]): string[] {
  return entries.flatMap((entry, at) => {
    const previous = entries[at - 1];
    if (!previous) return [];
    const follows =
      entry.round === previous.round
        ? entry.page === previous.page + 1
        : entry.round === previous.round + 1 && entry.page === 0 && previous.page === COUNTER_PAGES - 1;
    return follows && entry.ns >= previous.ns ? [] : [`${text(previous)} -> ${text(entry)}`];
  });
}

/** Lets a child run until it has gone over its memory under its own name, and reads it at one moment. */
async function memoryOf(child: Child, imagePath: string): Promise<CounterEntry[]> {
  for (;;) {
    await stopProcess(child.pid);
    const entries = readCounter(mappingOf(child.pid, imagePath));
    process.kill(child.pid, "SIGCONT");
    const own = entries.filter((entry) => entry.host === child.identity.hostname);
    if (own.length > COUNTER_PAGES) return entries;
    await child.agent.run(["/bin/sleep", "0.1"]);
  }
}

/** What every child must show, whenever it was forked: the freeze, and its own progress from there. */
function expectOnlyTheFreeze(child: Child, seen: CounterEntry[], frozen: CounterEntry[]): void {
  const freezePoint = frozen.at(-1)!;
  const oldest = seen[0]!;
  const past = seen.filter((entry) => isBefore(entry, freezePoint));
  const future = seen.filter((entry) => !isBefore(entry, freezePoint));
  // The oldest rounds have made room for the child's own; all that is left of the past is as it was.
  expect(past.length).toBeGreaterThan(COUNTER_PAGES);
  const kept = frozen.filter((entry) => isBefore(oldest, entry));
  expect(differences(past, kept)).toEqual([]);
  // It went on in the middle of the round, without a gap and without going back.
  expect(breaks([freezePoint, ...future])).toEqual([]);
  // First under the parent's name, then under its own, and nobody else's.
  const names = future.map((entry) => entry.host);
  const firstOwn = names.indexOf(child.identity.hostname);
  expect(new Set(names.slice(0, firstOwn)).size).toBeLessThanOrEqual(1);
  expect(names.slice(0, firstOwn).every((name) => name === freezePoint.host)).toBe(true);
  expect(new Set(names.slice(firstOwn))).toEqual(new Set([child.identity.hostname]));
}

describe("freeze()", () => {
  test(
    "is refused while something runs through the agent, and the VM goes on",
    async () => {
      const command = await vm.agent.exec(["/bin/sleep", "1000"]);
      const error = await rejection(freeze(vm, imageHash));
      expect(error.code).toBe("AGENT_REFUSED");
      await command.kill("SIGKILL");
      expect(await command.exited).toEqual({ signal: "SIGKILL" });
      expect(await vm.agent.run(["/bin/echo", "still here"])).toMatchObject({ stdout: "still here\n" });
    },
    TEST_MS,
  );

  test(
    "is refused for a VM whose memory is not a file",
    async () => {
      const error = await rejection(freeze({ ...vm, ramPath: undefined }, imageHash));
      expect(error.code).toBe("FREEZE_FAILED");
      expect(await vm.agent.run(["/bin/true"])).toMatchObject({ code: 0 });
    },
    TEST_MS,
  );

  test(
    "gives children the memory of its moment, and nothing of what anybody writes later",
    async () => {
      const start = "setsid /counter </dev/null >/dev/null 2>&1 &";
      expect(await vm.agent.run(["/bin/sh", "-c", start])).toMatchObject({ code: 0 });
      const ram = { path: vm.ramPath!, offset: 0, bytes: RAM_BYTES };
      for (let rounds = 0; rounds < 3; rounds = readCounter(ram).at(-1)?.round ?? 0) {
        await vm.agent.run(["/bin/sleep", "0.1"]);
      }
      const beforeFreeze = readCounter(ram).at(-1)!;
      const frozen: FrozenVm = await freeze(vm, imageHash);
      expect(existsSync(`/proc/${vm.qemu.pid}`)).toBe(false);
      expect(tracesOf(host)).toEqual({ processes: [], files: [frozen.imagePath] });

      const image = { path: frozen.imagePath, offset: 0, bytes: RAM_BYTES };
      const atFreeze = readCounter(image);
      expect(breaks(atFreeze)).toEqual([]);
      expect(isBefore(beforeFreeze, atFreeze.at(-1)!)).toBe(true);
      const hash = await hashMemory(frozen.imagePath);

      const { descriptor, imagePath } = frozen;
      await using parent = new Parent({ host, profile, descriptor, imagePath });
      const name = (index: number) => ({ identity: { index, hostname: `child-${index}` } });
      const children = await Promise.all([0, 1, 2].map((index) => parent.fork(name(index))));
      try {
        // Forked when the others have written all over their memory, and while they still do.
        for (const child of children) expectOnlyTheFreeze(child, await memoryOf(child, imagePath), atFreeze);
        children.push(await parent.fork(name(3)));
        const last = children.at(-1)!;
        expectOnlyTheFreeze(last, await memoryOf(last, imagePath), atFreeze);
      } finally {
        await Promise.all(children.map((child) => child[Symbol.asyncDispose]()));
      }
      expect(await hashMemory(frozen.imagePath)).toBe(hash);
      await parent[Symbol.asyncDispose]();
      expect(tracesOf(host)).toEqual({ ...NO_TRACES, files: [frozen.imagePath] });
    },
    TEST_MS,
  );
});
