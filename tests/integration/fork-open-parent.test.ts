import { afterAll, afterEach, beforeAll, describe, expect, test } from "bun:test";
import { chmodSync, closeSync, existsSync, mkdirSync, openSync, readdirSync, writeSync } from "node:fs";
import { join } from "node:path";
import type { Image } from "../../guest-agent/image/mod.ts";
import { type OpenParentOptions, openParent, type ParentProgress } from "../../runtime/fork/open-parent.ts";
import { Host } from "../../runtime/vm/host.ts";
import { processesOf } from "../../runtime/vm/owner.ts";
import { rejection } from "../support/agent-peer.ts";
import {
  baseImage,
  canMount,
  environment,
  NO_TRACES,
  SETUP_MS,
  smallTmpfs,
  TEST_MS,
  type TemporaryDirectory,
  temporaryDirectory,
  tracesOf,
} from "../support/vm.ts";

/** These tests have a data directory of their own, which they fill and damage. */
let directory: TemporaryDirectory;
let host: Host;
let image: Image;
let accelerator: Disposable;

beforeAll(async () => {
  image = await baseImage();
  directory = temporaryDirectory();
  // The probe is none of their business, and its verdict would have to be found out again.
  accelerator = environment({ FLURRY_ACCEL: "tcg" });
  host = await Host.open({ home: directory.path });
}, SETUP_MS);

afterEach(() => {
  expect(tracesOf(host)).toEqual(NO_TRACES);
});

afterAll(async () => {
  await host[Symbol.asyncDispose]();
  accelerator[Symbol.dispose]();
  directory[Symbol.dispose]();
});

/** Opens the parent and closes it again; tells what happened. */
async function open(changes: Partial<OpenParentOptions> = {}) {
  const steps: ParentProgress["step"][] = [];
  const { parent, origin } = await openParent({
    host,
    image,
    memMiB: 128,
    warmUp: { argv: ["/bin/sh", "-c", "echo warm > /tmp/state"] },
    onProgress: ({ step }) => {
      if (step !== "console") steps.push(step);
    },
    ...changes,
  });
  await using child = await parent.fork({ identity: { index: 0, hostname: "child" } });
  const { stdout } = await child.agent.run(["/bin/cat", "/tmp/state"]);
  const { imagePath } = parent;
  await parent[Symbol.asyncDispose]();
  return { steps, origin, stdout, imagePath };
}

function parents(): string[] {
  return readdirSync(join(directory.path, "parents")).filter((name) => name !== "by-key");
}

describe("openParent()", () => {
  test(
    "boots once, and takes the parent from disk from then on",
    async () => {
      const first = await open();
      expect(first.steps).toEqual(["boot", "warm-up", "freeze", "keep"]);
      expect(first.origin.cached).toBe(false);
      expect(first.origin.bootMs).toBeGreaterThan(0);
      expect(first.stdout).toBe("warm\n");

      const second = await open();
      expect(second.steps).toEqual(["cached"]);
      expect(second.origin.cached).toBe(true);
      expect(second.origin).not.toHaveProperty("bootMs");
      expect(second.imagePath).toBe(first.imagePath);
      expect(second.stdout).toBe("warm\n");
      expect(parents()).toHaveLength(1);
    },
    TEST_MS,
  );

  test(
    "boots another one when the memory on disk is damaged",
    async () => {
      const { imagePath } = await open();
      chmodSync(imagePath, 0o600);
      const fd = openSync(imagePath, "r+");
      writeSync(fd, Buffer.of(0x5a), 0, 1, 77 * 1024 * 1024);
      closeSync(fd);
      const other = await open();
      expect(other.steps).toEqual(["damaged", "boot", "warm-up", "freeze", "keep"]);
      expect(other.imagePath).not.toBe(imagePath);
      expect(other.stdout).toBe("warm\n");
      expect((await open()).steps).toEqual(["cached"]);
      expect(existsSync(imagePath)).toBe(false);
    },
    TEST_MS,
  );

  test(
    "rejects with the warm-up's own words when it fails, and keeps nothing",
    async () => {
      const before = parents();
      const warmUp = { argv: ["/bin/sh", "-c", "echo cannot warm up >&2; exit 7"] };
      const error = await rejection(open({ warmUp }));
      expect(error.code).toBe("TASK_FAILED");
      expect(error.message).toMatch(/status 7: cannot warm up/);
      expect(parents()).toEqual(before);
    },
    TEST_MS,
  );

  test(
    "rejects when the guest dies in the warm-up, and keeps nothing",
    async () => {
      const before = parents();
      const warmUp = { argv: ["/bin/sh", "-c", "echo c > /proc/sysrq-trigger; sleep 1000"] };
      const error = await rejection(open({ warmUp }));
      expect(error.code).toBe("CHILD_DIED");
      expect(error.message).toContain("the parent died");
      expect(parents()).toEqual(before);
    },
    TEST_MS,
  );

  test(
    "gives up a guest that stands still while it is given its files, and keeps nothing",
    async () => {
      const before = parents();
      const opening = open({
        files: [{ path: "/srv/file", data: new Uint8Array(1024 * 1024), mode: 0o644 }],
        warmUpTimeoutMs: 500,
        onProgress: ({ step }) => {
          if (step !== "files") return;
          for (const pid of processesOf(host.owner.run)) process.kill(pid, "SIGSTOP");
        },
      });
      const error = await rejection(opening);
      expect([error.code, error.message]).toEqual([
        "BOOT_TIMEOUT",
        'The guest has not taken "/srv/file" within 500 ms',
      ]);
      expect(parents()).toEqual(before);
    },
    TEST_MS,
  );

  test(
    "ends with ABORTED at an abort in the warm-up, and keeps nothing",
    async () => {
      const before = parents();
      const abort = new AbortController();
      const opening = open({
        warmUp: { argv: ["/bin/sleep", "1000"] },
        onProgress: ({ step }) => {
          if (step === "warm-up") setTimeout(() => abort.abort(), 100);
        },
        signal: abort.signal,
      });
      expect((await rejection(opening)).code).toBe("ABORTED");
      expect(parents()).toEqual(before);
    },
    TEST_MS,
  );

  test.skipIf(!canMount)(
    "rejects when the disk for the parent is full, and leaves nothing",
    async () => {
      using disk = smallTmpfs(4096);
      const home = join(disk.path, "home");
      mkdirSync(home);
      await using full = await Host.open({ home });
      const error = await rejection(open({ host: full }));
      expect(error.code).toBe("NO_SPACE");
      expect(error.message).toContain(home);
      expect(tracesOf(full)).toEqual(NO_TRACES);
      expect(readdirSync(join(home, "parents"))).toEqual(["by-key"]);
      expect(readdirSync(join(home, "parents", "by-key"))).toEqual([]);
    },
    TEST_MS,
  );
});
