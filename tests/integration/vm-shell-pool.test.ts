import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "bun:test";
import { chmodSync, truncateSync, writeFileSync } from "node:fs";
import { rm } from "node:fs/promises";
import { basename, join } from "node:path";
import { Host } from "../../runtime/vm/host.ts";
import type { ShellSpec } from "../../runtime/vm/shell.ts";
import { ShellPool } from "../../runtime/vm/shell-pool.ts";
import { rejection } from "../support/agent-peer.ts";
import {
  NO_TRACES,
  SETUP_MS,
  TEST_MS,
  type TemporaryDirectory,
  temporaryDirectory,
  tracesOf,
} from "../support/vm.ts";

let host: Host;
let directory: TemporaryDirectory;
let spec: ShellSpec & { image: string };

beforeAll(async () => {
  host = await Host.open();
}, SETUP_MS);

afterAll(() => host[Symbol.asyncDispose]());

/** Open to the user of VMs for writing too, whatever the umask: an old QEMU insists on that. */
function makeImage(path: string): void {
  writeFileSync(path, "");
  truncateSync(path, 64 * 1024 * 1024);
  chmodSync(path, 0o666);
}

beforeEach(() => {
  directory = temporaryDirectory();
  // Nothing is read of either before a device stream comes, which these shells never get.
  const image = join(directory.path, "image");
  makeImage(image);
  const disk = join(directory.path, "disk");
  writeFileSync(disk, Buffer.alloc(4096));
  spec = { host, image, profile: { accel: "tcg", memMiB: 64, cpus: 1, disk } };
});

afterEach(async () => {
  directory[Symbol.dispose]();
  expect(tracesOf(host)).toEqual(NO_TRACES);
});

async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await new Promise((resolve) => setTimeout(resolve, 5));
}

describe("ShellPool", () => {
  test(
    "gives the shells that wait, and starts one when none does",
    async () => {
      await using pool = new ShellPool(spec);
      await pool.keep(2);
      expect(pool.warm).toBe(2);
      await pool.keep(0);
      await using first = (await pool.take()).shell;
      await using second = (await pool.take()).shell;
      const cold = await pool.take();
      await using third = cold.shell;
      expect(cold.warm).toBe(false);
      const pids = [first, second, third].map((shell) => shell.qemu.pid);
      expect(new Set(pids).size).toBe(3);
      expect(tracesOf(host).processes.sort()).toEqual(pids.sort());
    },
    TEST_MS,
  );

  test(
    "resize() starts what is missing and ends what is too much, also of those being started",
    async () => {
      {
        await using pool = new ShellPool(spec);
        pool.resize(2);
        await until(() => pool.warm === 2);
        pool.resize(1);
        expect(pool.warm).toBe(1);
        await until(() => tracesOf(host).processes.length === 1);
        pool.resize(3);
        pool.resize(0);
        expect(pool.warm).toBe(0);
        await using taken = (await pool.take()).shell;
        await until(() => tracesOf(host).processes.length === 1);
        expect(tracesOf(host).processes).toEqual([taken.qemu.pid]);
        pool.resize(1);
      }
      expect(tracesOf(host)).toEqual(NO_TRACES);
    },
    TEST_MS,
  );

  test(
    "take() waits for a shell that is being started rather than starting another",
    async () => {
      // Directories are numbered in the order of starts.
      const last = Number(basename(host.owner.vmDir()));
      await using pool = new ShellPool(spec, { keep: 1, parallel: 1 });
      const taken = await pool.take();
      await using shell = taken.shell;
      expect(taken.warm).toBe(false);
      expect(Number(basename(shell.qemu.dir))).toBe(last + 1);
    },
    TEST_MS,
  );

  test(
    "replaces a shell that was taken",
    async () => {
      await using pool = new ShellPool(spec, { keep: 1 });
      await pool.keep(1);
      const taken = await pool.take();
      await using _shell = taken.shell;
      expect(taken.warm).toBe(true);
      expect(pool.warm).toBe(0);
      await until(() => pool.warm === 1);
      expect(tracesOf(host).processes).toHaveLength(2);
    },
    TEST_MS,
  );

  test(
    "drops a shell that is killed while it waits, and replaces it at the next keep()",
    async () => {
      await using pool = new ShellPool(spec);
      await pool.keep(2);
      const [victim, survivor] = tracesOf(host).processes as [number, number];
      process.kill(victim, "SIGKILL");
      await until(() => pool.warm === 1);
      await pool.keep(2);
      const { processes } = tracesOf(host);
      expect(processes).toHaveLength(2);
      expect(processes).toContain(survivor);
      expect(processes).not.toContain(victim);
      const taken = [await pool.take(), await pool.take()];
      for (const { shell, warm } of taken) {
        expect(warm).toBe(true);
        expect((await shell.qemu.qmp.execute("query-status")).status).toBe("inmigrate");
        await shell[Symbol.asyncDispose]();
      }
    },
    TEST_MS,
  );

  test(
    "tells whoever waits why shells do not start, and starts again when they can",
    async () => {
      await rm(spec.image);
      await using pool = new ShellPool(spec, { keep: 1 });
      const error = await rejection(pool.keep(2));
      expect(error.code).toBe("QEMU_START_FAILED");
      expect(error.message).toContain(spec.image);
      expect((await rejection(pool.take())).code).toBe("QEMU_START_FAILED");
      expect(pool.warm).toBe(0);
      makeImage(spec.image);
      await using _shell = (await pool.take()).shell;
      await until(() => pool.warm === 2);
    },
    TEST_MS,
  );

  test(
    "ends those who wait when it is disposed, and leaves nothing",
    async () => {
      const pool = new ShellPool(spec, { parallel: 2 });
      const waiting = rejection(pool.keep(4));
      await until(() => tracesOf(host).processes.length > 0);
      await pool[Symbol.asyncDispose]();
      expect((await waiting).code).toBe("ABORTED");
      expect((await rejection(pool.take())).code).toBe("ABORTED");
    },
    TEST_MS,
  );

  test(
    "keep() ends at an abort while shells start, and take() too",
    async () => {
      await using pool = new ShellPool(spec, { parallel: 1 });
      const abort = new AbortController();
      const keeping = rejection(pool.keep(50, abort.signal));
      await until(() => pool.warm > 0);
      abort.abort();
      expect((await keeping).code).toBe("ABORTED");
      expect(pool.warm).toBeLessThan(50);
      expect((await rejection(pool.take(abort.signal))).code).toBe("ABORTED");

      const { signal } = abort;
      await using other = new ShellPool(spec);
      expect((await rejection(other.take(signal))).code).toBe("ABORTED");
      const late = new AbortController();
      const taking = rejection(other.take(late.signal));
      late.abort();
      expect((await taking).code).toBe("ABORTED");
    },
    TEST_MS,
  );
});
