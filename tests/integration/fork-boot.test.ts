import { afterAll, afterEach, beforeAll, describe, expect, test } from "bun:test";
import { readFileSync, statfsSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { packCpio } from "../../guest-agent/image/cpio.ts";
import type { Image } from "../../guest-agent/image/mod.ts";
import { type BootOptions, bootVm } from "../../runtime/fork/boot.ts";
import { openParent } from "../../runtime/fork/open-parent.ts";
import { Host } from "../../runtime/vm/host.ts";
import { rejection } from "../support/agent-peer.ts";
import {
  baseImage,
  canMount,
  environment,
  guestProgram,
  NO_TRACES,
  SETUP_MS,
  smallTmpfs,
  TEST_MS,
  type TemporaryDirectory,
  temporaryDirectory,
  tracesOf,
} from "../support/vm.ts";

const MEM_MIB = 128;
const KIB = 1024;

let host: Host;
let image: Image;
let directory: TemporaryDirectory;

beforeAll(async () => {
  host = await Host.open();
  image = await baseImage();
  directory = temporaryDirectory();
}, SETUP_MS);

afterEach(() => {
  expect(tracesOf(host)).toEqual(NO_TRACES);
});

afterAll(async () => {
  directory[Symbol.dispose]();
  await host[Symbol.asyncDispose]();
});

function options(changes: Partial<BootOptions> = {}): BootOptions {
  const profile = { accel: "tcg", memMiB: MEM_MIB, cpus: 1, disk: image.disk } as const;
  return { host, profile, boot: image, ram: "shared", ...changes };
}

function file(name: string, content: Uint8Array | string): string {
  const path = join(directory.path, name);
  writeFileSync(path, content);
  return path;
}

/** Takes the space of a file system but for this many KiB. */
function fill(path: string, leaveKiB: number): void {
  const { bavail, bsize } = statfsSync(path);
  writeFileSync(join(path, "filler"), Buffer.alloc(bavail * bsize - leaveKiB * KIB, 1));
}

describe("bootVm()", () => {
  test(
    "rejects with the end of the console when the kernel panics",
    async () => {
      const initrd = file("initrd", "no archive at all");
      const error = await rejection(bootVm(options({ boot: { ...image, initrd } })));
      expect(error.code).toBe("BOOT_FAILED");
      expect(error.message).toContain("Kernel panic");
    },
    TEST_MS,
  );

  test(
    "rejects in time when a guest boots and says nothing",
    async () => {
      const source = join(import.meta.dirname, "../support/init-hangs.c");
      const program = readFileSync(await guestProgram(source, join(directory.path, "init")));
      const console = { path: "dev/console", mode: 0o020600, device: [5, 1] as [number, number] };
      const entries = [
        { path: "dev", mode: 0o040755 },
        console,
        { path: "init", mode: 0o100755, data: program },
      ];
      const initrd = file("hangs", packCpio(entries));
      const error = await rejection(bootVm(options({ boot: { ...image, initrd }, timeoutMs: 2000 })));
      expect(error.code).toBe("BOOT_TIMEOUT");
      expect(error.message).toContain("2000 ms");
    },
    TEST_MS,
  );

  test(
    "rejects when QEMU takes no such kernel",
    async () => {
      const kernel = file("kernel", "no kernel");
      const error = await rejection(bootVm(options({ boot: { ...image, kernel } })));
      expect(error.code).toBe("QEMU_START_FAILED");
      expect(error.message).toContain("kernel");
    },
    TEST_MS,
  );

  test(
    "rejects when QEMU is killed while the guest boots",
    async () => {
      const booting = rejection(bootVm(options({ onConsoleLine: () => undefined })));
      for (;;) {
        const [pid] = tracesOf(host).processes;
        if (pid !== undefined && /^Seccomp:\t2/m.test(readFileSync(`/proc/${pid}/status`, "utf8"))) {
          process.kill(pid, "SIGKILL");
          break;
        }
        await new Promise((resolve) => setTimeout(resolve, 5));
      }
      const error = await booting;
      expect(["BOOT_FAILED", "QEMU_START_FAILED"]).toContain(error.code!);
      expect(error.message).toContain("killed by SIGKILL");
    },
    TEST_MS,
  );

  test(
    "ends with ABORTED at an abort",
    async () => {
      const abort = new AbortController();
      const booting = rejection(bootVm(options({ signal: abort.signal })));
      setTimeout(() => abort.abort(), 500);
      expect((await booting).code).toBe("ABORTED");
    },
    TEST_MS,
  );
});

describe.skipIf(!canMount)("in a tmpfs that is too small", () => {
  /** A runtime whose tmpfs has room for this much beside the guest's memory. */
  async function smallHost(spareKiB: number) {
    await using stack = new AsyncDisposableStack();
    const tmpfs = stack.use(smallTmpfs(MEM_MIB * KIB + spareKiB));
    stack.use(environment({ FLURRY_SHM: tmpfs.path }));
    const small = stack.use(await Host.open());
    const owned = stack.move();
    return { host: small, shm: tmpfs.path, [Symbol.asyncDispose]: () => owned.disposeAsync() };
  }

  test(
    "bootVm() says so before it starts anything",
    async () => {
      await using small = await smallHost(1024);
      const error = await rejection(bootVm(options({ host: small.host })));
      expect(error).toMatchObject({ code: "NO_SPACE", hint: expect.stringContaining("FLURRY_SHM") });
      expect(error.message).toContain(`${MEM_MIB} MiB`);
      expect(tracesOf(small.host)).toEqual(NO_TRACES);
    },
    TEST_MS,
  );

  // What a kernel needs first, and what it needs to the end of its boot.
  test.each([1, 16, 40])(
    "bootVm() says so when the guest gets no more than %d MiB of it",
    async (mib) => {
      await using small = await smallHost(10 * KIB);
      const booting = rejection(bootVm(options({ host: small.host })));
      fill(small.shm, mib * KIB);
      const error = await booting;
      expect(error.code).toBe("NO_SPACE");
      expect(tracesOf(small.host)).toEqual(NO_TRACES);
    },
    TEST_MS,
  );

  test(
    "openParent() says so when it fills up in the warm-up",
    async () => {
      await using small = await smallHost(10 * KIB);
      using home = temporaryDirectory();
      const opening = openParent({
        host: Object.assign(small.host, { home: home.path }),
        image,
        memMiB: MEM_MIB,
        warmUp: { argv: ["/bin/sh", "-c", "head -c 60M /dev/zero | tr '\\0' x > /tmp/x"] },
        onProgress: ({ step }) => {
          if (step === "warm-up") fill(small.shm, KIB);
        },
      });
      const error = await rejection(opening);
      expect(error.code).toBe("NO_SPACE");
      expect(tracesOf(small.host)).toEqual(NO_TRACES);
    },
    TEST_MS,
  );
});
