import { afterAll, afterEach, beforeAll, describe, expect, test } from "bun:test";
import { lstatSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { ParentStore } from "../../runtime/fork/parent-store.ts";
import { isRoot } from "../../runtime/home.ts";
import { Host } from "../../runtime/vm/host.ts";
import { commandLine } from "../../runtime/vm/profile.ts";
import { QemuProcess } from "../../runtime/vm/qemu-process.ts";
import { rejection } from "../support/agent-peer.ts";
import {
  environment,
  NO_TRACES,
  ownDirectories,
  SETUP_MS,
  TEST_MS,
  type TemporaryDirectory,
  temporaryDirectory,
  tracesOf,
} from "../support/vm.ts";

let host: Host;
let directory: TemporaryDirectory;
let disk: string;

beforeAll(async () => {
  host = await Host.open();
  directory = temporaryDirectory();
  disk = join(directory.path, "disk");
  writeFileSync(disk, Buffer.alloc(4096));
}, SETUP_MS);

afterEach(() => {
  expect(tracesOf(host)).toEqual(NO_TRACES);
});

afterAll(async () => {
  await host[Symbol.asyncDispose]();
  directory[Symbol.dispose]();
});

/** A machine without a kernel, whose CPUs do not run. */
function stoppedMachine(dir: string): string[] {
  const profile = { accel: "tcg", memMiB: 64, cpus: 1, disk } as const;
  return commandLine({ qemu: host.qemu, profile, ram: { kind: "anonymous" }, dir, paused: true });
}

function start(signal?: AbortSignal): Promise<QemuProcess> {
  const dir = host.owner.vmDir();
  return QemuProcess.start({ host, dir, args: stoppedMachine(dir), signal });
}

/** The fields of /proc/PID/status. */
function statusOf(pid: number): Map<string, string> {
  const lines = readFileSync(`/proc/${pid}/status`, "utf8").trim().split("\n");
  return new Map(lines.map((line) => line.split(":\t") as [string, string]));
}

describe("Host.open()", () => {
  test(
    "gives VMs directories that their user can pass through, whatever the umask",
    async () => {
      using own = ownDirectories();
      using stack = new DisposableStack();
      stack.use(environment({ FLURRY_RUN: join(own.run, "r"), FLURRY_SHM: join(own.shm, "s") }));
      const umask = process.umask(0o077);
      stack.defer(() => process.umask(umask));
      await using strict = await Host.open({ home: own.home });
      new ParentStore(strict);
      const dirs = [
        join(own.run, "r"),
        join(own.shm, "s"),
        strict.owner.run,
        strict.owner.shm,
        join(own.home, "parents"),
      ];
      for (const dir of dirs) expect([dir, lstatSync(dir).mode & 0o111]).toEqual([dir, 0o111]);
      const vm = strict.owner.vmDir();
      await using qemu = await QemuProcess.start({ host: strict, dir: vm, args: stoppedMachine(vm) });
      expect((await qemu.qmp.execute("query-status")).status).toBe("prelaunch");
    },
    TEST_MS,
  );

  test.each([
    ["is missing", "/nowhere/qemu-system-x86_64"],
    ["is not in PATH", "no-such-qemu"],
    ["is no program", import.meta.filename],
    ["is another program", "/bin/true"],
    ["fails", "/bin/false"],
  ])(
    "rejects when QEMU %s, and makes nothing",
    async (_what, FLURRY_QEMU) => {
      using own = ownDirectories();
      using _qemu = environment({ FLURRY_QEMU });
      const error = await rejection(Host.open());
      expect(error.code).toBe("QEMU_NOT_FOUND");
      expect(error.message).toContain(FLURRY_QEMU);
      expect([...readdirSync(own.run), ...readdirSync(own.shm)]).toEqual([]);
    },
    TEST_MS,
  );

  test("ends with ABORTED at an abort", async () => {
    using _own = ownDirectories();
    expect((await rejection(Host.open({ signal: AbortSignal.abort() }))).code).toBe("ABORTED");
  });
});

describe("QemuProcess.start()", () => {
  test(
    "rejects with what QEMU said when it ends at once, every time",
    async () => {
      for (let round = 0; round < 10; round++) {
        const dir = host.owner.vmDir();
        const args = [...stoppedMachine(dir), "-device", `no-such-device-${round}`];
        const error = await rejection(QemuProcess.start({ host, dir, args }));
        expect(error.code).toBe("QEMU_START_FAILED");
        expect(error.message).toContain(`no-such-device-${round}`);
      }
    },
    TEST_MS,
  );

  test(
    "rejects when QEMU runs and does not get in touch",
    async () => {
      const dir = host.owner.vmDir();
      // Named in the arguments, so that it would be found if it stayed behind.
      const args = ["-M", "none", "-nodefaults", "-display", "none", "-name", `${dir}/none`];
      const error = await rejection(QemuProcess.start({ host, dir, args, timeoutMs: 300 }));
      expect(error.code).toBe("QEMU_START_FAILED");
      expect(error.message).toContain("not ready after 300 ms");
    },
    TEST_MS,
  );

  test(
    "rejects when the program that confines QEMU is not there",
    async () => {
      using _path = environment({ PATH: "/nowhere" });
      const error = await rejection(start());
      expect(error.code).toBe("QEMU_START_FAILED");
      expect(error.message).toContain("setpriv");
    },
    TEST_MS,
  );

  test(
    "ends with ABORTED at an abort, whenever it comes",
    async () => {
      expect((await rejection(start(AbortSignal.abort()))).code).toBe("ABORTED");
      for (const afterMs of [0, 10, 20]) {
        const abort = new AbortController();
        const starting = rejection(start(abort.signal));
        setTimeout(() => abort.abort(), afterMs);
        expect((await starting).code).toBe("ABORTED");
      }
    },
    TEST_MS,
  );
});

describe("QemuProcess", () => {
  test(
    "runs QEMU without privileges, without new ones to be had, and behind seccomp",
    async () => {
      await using qemu = await start();
      const status = statusOf(qemu.pid);
      expect(status.get("NoNewPrivs")).toBe("1");
      expect(status.get("Seccomp")).toBe("2");
      expect(status.get("Uid")!.split("\t")).not.toContain("0");
      expect(status.get("Gid")!.split("\t")).not.toContain("0");
      expect(status.get("Groups")!.trim().split(" ")).not.toContain("0");
      expect(status.get("CapEff")).toBe("0000000000000000");
      expect(status.get("CapPrm")).toBe("0000000000000000");
      if (isRoot()) expect(status.get("CapBnd")).toBe("0000000000000000");
      const environ = isRoot() ? readFileSync(`/proc/${qemu.pid}/environ`, "utf8") : "PATH=\0";
      expect(environ.split("\0").map((entry) => entry.split("=")[0])).toEqual(["PATH", ""]);
    },
    TEST_MS,
  );

  test(
    "keeps others out of the directory of its sockets",
    async () => {
      await using qemu = await start();
      expect(lstatSync(qemu.dir).mode & 0o777).toBe(0o700);
      if (host.user) expect(lstatSync(qemu.dir).uid).toBe(host.user.uid);
      expect(lstatSync(host.owner.run).mode & 0o066).toBe(0);
    },
    TEST_MS,
  );

  test.each([
    ["SIGKILL", "QEMU_EXITED"],
    ["SIGBUS", "NO_SPACE"],
  ] as const)(
    "notices that QEMU was ended by %s, and says %s",
    async (name, code) => {
      await using qemu = await start();
      const event = qemu.qmp.expect("RESUME", { timeoutMs: TEST_MS });
      const pending = rejection(event);
      process.kill(qemu.pid, name);
      const info = await qemu.exited;
      expect(info).toEqual({ code: null, signal: name });
      const error = qemu.exitError(info);
      expect(error.code).toBe(code);
      expect(error.message).toContain(`pid ${qemu.pid}`);
      expect((await pending).code).toBe("QMP_CLOSED");
      expect((await rejection(qemu.qmp.execute("query-status"))).code).toBe("QMP_CLOSED");
      event[Symbol.dispose]();
    },
    TEST_MS,
  );

  test(
    "is gone with all that it had when it is disposed, also while it stands still",
    async () => {
      const running = await start();
      const stopped = await start();
      process.kill(stopped.pid, "SIGSTOP");
      await Promise.all([running[Symbol.asyncDispose](), stopped[Symbol.asyncDispose]()]);
      await running[Symbol.asyncDispose]();
      expect(readdirSync(host.owner.run)).toEqual([]);
    },
    TEST_MS,
  );
});
