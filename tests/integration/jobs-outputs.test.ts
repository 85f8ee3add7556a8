import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "bun:test";
import {
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import type { Parent } from "../../runtime/fork/parent.ts";
import { Host } from "../../runtime/vm/host.ts";
import { runInChildren, sh, type Task } from "../support/tasks.ts";
import {
  baseParent,
  canMount,
  NO_TRACES,
  SETUP_MS,
  smallTmpfs,
  TEST_MS,
  type TemporaryDirectory,
  temporaryDirectory,
  tracesOf,
} from "../support/vm.ts";

let host: Host;
let parent: Parent;
let directory: TemporaryDirectory;

beforeAll(async () => {
  host = await Host.open();
  parent = await baseParent(host);
}, SETUP_MS);

beforeEach(() => {
  directory = temporaryDirectory();
});

afterEach(() => {
  directory[Symbol.dispose]();
  expect(tracesOf(host)).toEqual(NO_TRACES);
});

afterAll(async () => {
  await parent[Symbol.asyncDispose]();
  await host[Symbol.asyncDispose]();
});

describe("what a task leaves in /out", () => {
  const outDir = (index: number) => join(directory.path, String(index));

  /** Runs one task with outputs. */
  async function leave(script: string, changes: Partial<Task> = {}) {
    const [result] = await runInChildren(parent, 1, (index) => ({
      argv: sh(script),
      outDir: outDir(index),
      ...changes,
    }));
    return result!;
  }

  test(
    "arrives with its directories, modes and bytes, without symbolic links and devices",
    async () => {
      const result =
        await leave(`cd /out; mkdir -p a/b/c empty; printf one > a/b/c/1; printf 'two\\n' > 2; : > none
      head -c 300000 /dev/zero | tr '\\0' z > 'a/large file'; chmod 750 2; chmod 600 none
      ln -s /etc/passwd link; ln -s .. a/up; mkfifo pipe; printf x > '$(touch pwned)'`);
      expect(result).toMatchObject({ state: "succeeded", outcome: { code: 0, files: 5 } });
      const out = outDir(0);
      expect(readdirSync(out, { recursive: true }).map(String).sort()).toEqual(
        ["$(touch pwned)", "2", "a", "a/b", "a/b/c", "a/b/c/1", "a/large file", "empty", "none"].sort(),
      );
      expect(readFileSync(join(out, "a/b/c/1"), "utf8")).toBe("one");
      expect(readFileSync(join(out, "2"), "utf8")).toBe("two\n");
      expect(statSync(join(out, "2")).mode & 0o7777).toBe(0o750);
      expect(statSync(join(out, "none"))).toMatchObject({ size: 0 });
      expect(readFileSync(join(out, "a/large file")).equals(Buffer.alloc(300_000, "z"))).toBe(true);
      expect(readdirSync(directory.path)).toEqual(["0"]);
    },
    TEST_MS,
  );

  test(
    "never brings bits with it that give privileges here",
    async () => {
      await leave("printf x > /out/set; chmod 6755 /out/set");
      expect(lstatSync(join(outDir(0), "set")).mode & 0o7777).toBe(0o755);
    },
    TEST_MS,
  );

  test(
    "arrives also of a task that failed, and not of one that was ended",
    async () => {
      const failed = await leave("echo partial > /out/log; exit 3");
      expect(failed).toMatchObject({ state: "failed", outcome: { code: 3, files: 1 } });
      expect(readFileSync(join(outDir(0), "log"), "utf8")).toBe("partial\n");
      const ended = await leave("echo partial > /out/log; sleep 1000", {
        timeoutMs: 500,
        outDir: join(directory.path, "ended"),
      });
      expect(ended.error?.code).toBe("TASK_TIMEOUT");
      expect(existsSync(join(directory.path, "ended"))).toBe(false);
      expect(readdirSync(directory.path)).toEqual(["0"]);
    },
    TEST_MS,
  );

  test(
    "is refused when it claims more than the guest has memory",
    async () => {
      const result = await leave("truncate -s 100G /out/bomb");
      expect(result).toMatchObject({ state: "failed", error: { code: "TASK_FAILED" } });
      expect(result.error!.message).toContain(String(100 * 2 ** 30));
      expect(readdirSync(directory.path)).toEqual([]);
    },
    TEST_MS,
  );

  test(
    "is refused when it grows while it is fetched, and appears not at all",
    async () => {
      const grow = "(while :; do head -c 100K /dev/zero; done) >> /out/growing 2>/dev/null </dev/null &";
      const result = await leave(
        `head -c 20M /dev/zero > /out/growing; setsid sh -c '${grow}' >/dev/null 2>&1`,
      );
      expect(result).toMatchObject({ state: "failed", error: { code: "TASK_FAILED" } });
      expect(result.error!.message).toContain("grew");
      expect(readdirSync(directory.path)).toEqual([]);
    },
    TEST_MS,
  );

  test(
    "does not go over what is there already",
    async () => {
      mkdirSync(outDir(0));
      writeFileSync(join(outDir(0), "precious"), "mine");
      const result = await leave("echo theirs > /out/precious");
      expect(result.state).toBe("failed");
      expect(readFileSync(join(outDir(0), "precious"), "utf8")).toBe("mine");
      expect(readdirSync(directory.path)).toEqual(["0"]);
    },
    TEST_MS,
  );

  test.skipIf(!canMount)(
    "says NO_SPACE when the disk for it is full, and leaves nothing there",
    async () => {
      using disk = smallTmpfs(1024);
      const result = await leave("head -c 3M /dev/zero | tr '\\0' x > /out/large", {
        outDir: join(disk.path, "0"),
      });
      expect(result).toMatchObject({ state: "failed", error: { code: "NO_SPACE" } });
      expect(readdirSync(disk.path)).toEqual([]);
    },
    TEST_MS,
  );
});
