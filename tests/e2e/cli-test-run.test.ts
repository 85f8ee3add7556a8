import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { runStep } from "../../runtime/cli/test-run.ts";

let directory: string;

beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), "flurry-test-run-"));
});

afterAll(() => {
  rmSync(directory, { recursive: true });
});

/** Runs a test file with this text the way `flurry test` runs it. */
async function runFile(text: string, timeoutMs = 60_000) {
  const name = `${crypto.randomUUID()}.test.ts`;
  writeFileSync(
    join(directory, name),
    `import { afterAll, describe, expect, test } from "bun:test";\n${text}`,
  );
  const report = join(directory, `${name}.xml`);
  const argv = [process.execPath, "test", "--reporter=junit", `--reporter-outfile=${report}`, `./${name}`];
  return await runStep({ name, argv, report }, { cwd: directory, timeoutMs });
}

describe("runStep()", () => {
  test("counts passes, failures and skips", async () => {
    const result = await runFile(`
      test("one", () => expect(1).toBe(1));
      describe("more", () => {
        test("two", () => expect(2).toBe(2));
        test("bad", () => expect(1).toBe(2));
        test.skip("later", () => expect(1).toBe(2));
      });`);
    expect(result).toMatchObject({ passed: 2, failed: 1, skipped: 1 });
    expect(result.reason).toBeUndefined();
    expect(result.output).toContain("(fail) more > bad");
  });

  test("counts a file that cannot be loaded as a failure", async () => {
    const result = await runFile(`import "./nowhere.ts";\ntest("never", () => expect(1).toBe(1));`);
    expect(result).toMatchObject({ passed: 0, failed: 1, reason: "Exit code 1" });
  });

  test("counts an error outside of any test as a failure", async () => {
    const result = await runFile(`
      test("fine", () => expect(1).toBe(1));
      afterAll(() => { throw new Error("late"); });`);
    expect(result.failed).toBe(1);
    expect(result.passed).toBe(1);
  });

  test("counts a runner that is killed as a failure", async () => {
    const result = await runFile(`test("dies", () => { process.kill(process.pid, "SIGKILL"); });`);
    expect(result).toMatchObject({ passed: 0, failed: 1, reason: "Ended by SIGKILL" });
  });

  test("ends a runner that hangs, with all that it started", async () => {
    const pidFile = join(directory, "pid");
    const result = await runFile(
      `
      import { spawn } from "node:child_process";
      import { writeFileSync } from "node:fs";
      test("hangs", async () => {
        const child = spawn("sleep", ["1000"], { stdio: "inherit" });
        writeFileSync(${JSON.stringify(pidFile)}, String(child.pid));
        await new Promise(() => undefined);
      }, 1_000_000);`,
      3000,
    );
    expect(result).toMatchObject({ passed: 0, failed: 1, reason: "Still running after 3 s: ended" });
    const pid = readFileSync(pidFile, "utf8");
    const alive =
      existsSync(`/proc/${pid}/stat`) && !/\) [ZX] /.test(readFileSync(`/proc/${pid}/stat`, "utf8"));
    expect(alive).toBe(false);
  });

  test("without a report the exit code is the verdict", async () => {
    const step = (script: string) =>
      runStep({ name: "check", argv: ["sh", "-c", script] }, { cwd: directory, timeoutMs: 60_000 });
    expect(await step("exit 0")).toMatchObject({ passed: 1, failed: 0 });
    expect(await step("echo why >&2; exit 5")).toMatchObject({
      passed: 0,
      failed: 1,
      reason: "Exit code 5",
      output: "why\n",
    });
  });

  test("rejects when aborted, and the program is gone", async () => {
    const controller = new AbortController();
    const running = runStep(
      { name: "check", argv: ["sleep", "1000"] },
      { cwd: directory, timeoutMs: 60_000, signal: controller.signal },
    );
    controller.abort(new Error("enough"));
    await expect(running).rejects.toThrow("enough");
  });
});
