import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { basename, join } from "node:path";
import {
  Owner,
  ownerName,
  processesOf,
  reapLeftoverFiles,
  reapLeftovers,
  startTimeOf,
  temporaryPrefix,
} from "../../runtime/vm/owner.ts";
import { rejection } from "../support/agent-peer.ts";
import { type TemporaryDirectory, temporaryDirectory } from "../support/vm.ts";

let directory: TemporaryDirectory;
let roots: { run: string; shm: string };
const started: ChildProcess[] = [];

beforeEach(() => {
  directory = temporaryDirectory();
  roots = { run: join(directory.path, "run"), shm: join(directory.path, "shm") };
  mkdirSync(roots.run);
  mkdirSync(roots.shm);
});

afterEach(async () => {
  for (const child of started.splice(0)) {
    child.kill("SIGKILL");
    if (child.exitCode === null && child.signalCode === null) await once(child, "exit");
  }
  directory[Symbol.dispose]();
});

/** A process that waits, with these words in its command line. */
async function waiting(...words: string[]): Promise<ChildProcess> {
  // `read` waits in the shell itself, so the words stay in the command line of the one that waits.
  const child = spawn("sh", ["-c", "echo; read line", ...words], { stdio: ["pipe", "pipe", "ignore"] });
  started.push(child);
  await once(child.stdout!, "data");
  return child;
}

/** Name of the directory of a runtime that is dead. */
function deadName(sequence = 0): string {
  const { pid } = spawnSync("true");
  expect(startTimeOf(pid)).toBeUndefined();
  return ownerName(pid, "123456", sequence);
}

function leave(root: string, name: string): string {
  const path = join(root, name);
  mkdirSync(join(path, "7"), { recursive: true });
  writeFileSync(join(path, "7", "q"), "");
  writeFileSync(join(path, "0.ram"), "memory");
  return path;
}

function isAlive(child: ChildProcess): boolean {
  return child.exitCode === null && child.signalCode === null && existsSync(`/proc/${child.pid}`);
}

describe("reapLeftovers()", () => {
  test("kills what a dead runtime started and removes what it wrote", async () => {
    const name = deadName();
    const run = leave(roots.run, name);
    const shm = leave(roots.shm, name);
    const byRun = await waiting("name", `unix:${run}/7/q`);
    const byShm = await waiting("name", `mem-path=${shm}/0.ram,share=on`);
    const ended = Promise.all([once(byRun, "exit"), once(byShm, "exit")]);
    expect(await reapLeftovers(roots)).toEqual([name]);
    expect(await ended).toEqual([
      [null, "SIGKILL"],
      [null, "SIGKILL"],
    ]);
    expect(readdirSync(roots.run)).toEqual([]);
    expect(readdirSync(roots.shm)).toEqual([]);
  });

  test("finds a runtime that has left something in one of the places only", async () => {
    const [first, second] = [deadName(1), deadName(2)];
    leave(roots.run, first);
    leave(roots.shm, second);
    expect((await reapLeftovers(roots)).sort()).toEqual([first, second].sort());
    expect(readdirSync(roots.run)).toEqual([]);
    expect(readdirSync(roots.shm)).toEqual([]);
  });

  test("spares whoever has got the PID of a dead runtime since", async () => {
    const stranger = await waiting("stranger");
    const name = ownerName(stranger.pid!, String(Number(startTimeOf(stranger.pid!)) - 1), 0);
    leave(roots.run, name);
    expect(await reapLeftovers(roots)).toEqual([name]);
    expect(isAlive(stranger)).toBe(true);
    expect(readdirSync(roots.run)).toEqual([]);
  });

  test("leaves alone what belongs to another PID namespace", async () => {
    // Its PIDs mean other processes there than here: whether it lives cannot be told from here.
    const [, ...rest] = deadName().split("-");
    const name = ["1", ...rest].join("-");
    leave(roots.run, name);
    leave(roots.shm, name);
    expect(await reapLeftovers(roots)).toEqual([]);
    expect([readdirSync(roots.run), readdirSync(roots.shm)]).toEqual([[name], [name]]);
  });

  test("touches nothing of a runtime that lives", async () => {
    const owner = await waiting("owner");
    const name = ownerName(owner.pid!, startTimeOf(owner.pid!)!, 3);
    const run = leave(roots.run, name);
    leave(roots.shm, name);
    const vm = await waiting("vm", `${run}/7/q`);
    expect(await reapLeftovers(roots)).toEqual([]);
    expect(isAlive(vm)).toBe(true);
    expect(readdirSync(run).sort()).toEqual(["0.ram", "7"]);
    expect(readdirSync(roots.shm)).toEqual([name]);
  });

  test("spares a process that names a directory whose name only begins the same", async () => {
    const name = deadName(1);
    const run = leave(roots.run, name);
    const other = await waiting("other", `${run}0/7/q`, run);
    expect(await reapLeftovers(roots)).toEqual([name]);
    expect(isAlive(other)).toBe(true);
  });

  test("leaves alone what has no owner's name", async () => {
    const names = ["notes", "1-2", "1-2-3-4", "x-1-2", "1-2-3.txt", "-1-2-3"];
    for (const name of names) leave(roots.run, name);
    expect(await reapLeftovers(roots)).toEqual([]);
    expect(readdirSync(roots.run).sort()).toEqual(names.sort());
  });
});

describe("Owner", () => {
  test("has directories of its own until it is disposed, with the processes that name them", async () => {
    let run: string;
    let ended: Promise<unknown>;
    {
      await using owner = await Owner.open(roots);
      await using other = await Owner.open(roots);
      run = owner.run;
      expect(new Set([owner.run, owner.shm, other.run, other.shm]).size).toBe(4);
      expect(basename(owner.run)).toBe(basename(owner.shm));
      expect(basename(owner.run)).toMatch(
        new RegExp(`^\\d+-${process.pid}-${startTimeOf(process.pid)}-\\d+$`),
      );
      expect(new Set([owner.vmDir(), owner.vmDir(), other.vmDir()]).size).toBe(3);
      const vm = await waiting("vm", `${owner.vmDir()}/q`);
      ended = once(vm, "exit");
      expect(processesOf(run)).toEqual([vm.pid!]);
    }
    expect(await ended).toEqual([null, "SIGKILL"]);
    expect(existsSync(run)).toBe(false);
    expect(readdirSync(roots.run)).toEqual([]);
    expect(readdirSync(roots.shm)).toEqual([]);
  });

  test("is not reaped by another one of the same process", async () => {
    await using first = await Owner.open(roots);
    const vm = await waiting("vm", `${first.vmDir()}/q`);
    await using _second = await Owner.open(roots);
    expect(isAlive(vm)).toBe(true);
    expect(existsSync(first.run)).toBe(true);
  });

  test("is refused where its sockets' paths would be too long for the kernel", async () => {
    const deep = join(directory.path, "x".repeat(60), "y".repeat(60));
    mkdirSync(deep, { recursive: true });
    const error = await rejection(Owner.open({ run: deep, shm: roots.shm }));
    expect(error.code).toBe("BAD_ARGUMENT");
    expect(error.message).toContain(deep);
    expect(readdirSync(deep)).toEqual([]);
    expect(readdirSync(roots.shm)).toEqual([]);
  });
});

describe("startTimeOf()", () => {
  test("is not misled by a process's name", async () => {
    const program = join(directory.path, "a) S 1 (b");
    copyFileSync("/bin/sleep", program);
    const child = spawn(program, ["1000"], { stdio: "ignore" });
    started.push(child);
    await once(child, "spawn");
    while (!readFileSync(`/proc/${child.pid}/comm`, "latin1").startsWith("a)")) {
      await new Promise((resolve) => setImmediate(resolve));
    }
    expect(Number(startTimeOf(child.pid!))).toBeGreaterThanOrEqual(Number(startTimeOf(process.pid)));
  });

  test("stays the same for a process, and is none for one that is gone", () => {
    expect(startTimeOf(process.pid)).toBe(startTimeOf(process.pid)!);
    expect(startTimeOf(process.pid)).toMatch(/^\d+$/);
    expect(startTimeOf(spawnSync("true").pid)).toBeUndefined();
  });
});

describe("reapLeftoverFiles()", () => {
  test("removes what another PID namespace left when it is more than a day old, and not before", () => {
    const [, ...rest] = ownerName(1, "1", 0).split("-");
    const [old, fresh] = ["7", "8"].map((namespace) => `.tmp-${[namespace, ...rest].join("-")}-x`) as [
      string,
      string,
    ];
    for (const name of [old, fresh]) writeFileSync(join(roots.run, name), "");
    const twoDaysAgo = new Date(Date.now() - 2 * 24 * 60 * 60 * 1000);
    utimesSync(join(roots.run, old), twoDaysAgo, twoDaysAgo);
    reapLeftoverFiles(roots.run);
    expect(readdirSync(roots.run)).toEqual([fresh]);
  });

  test("removes temporary files of dead processes, and nothing else", async () => {
    const stranger = await waiting("stranger");
    const mine = `${temporaryPrefix()}mine`;
    const dead = `.tmp-${deadName()}-x`;
    const reused = `.tmp-${ownerName(stranger.pid!, String(Number(startTimeOf(stranger.pid!)) - 1), 0)}-x`;
    for (const name of [mine, "kept", ".tmp-x"]) writeFileSync(join(directory.path, name), "");
    for (const name of [dead, reused]) leave(directory.path, name);
    reapLeftoverFiles(directory.path);
    expect(readdirSync(directory.path).sort()).toEqual([".tmp-x", mine, "kept", "run", "shm"].sort());
    expect(isAlive(stranger)).toBe(true);
  });
});
