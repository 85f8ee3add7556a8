import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { mkdirSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { CliSandbox, eventsOf } from "../support/cli.ts";

let sandbox: CliSandbox;

setDefaultTimeout(120_000);

beforeAll(() => {
  sandbox = new CliSandbox();
});

afterAll(async () => {
  expect(sandbox.leftovers()).toEqual([]);
  await sandbox[Symbol.asyncDispose]();
});

test("flurry run says that there is no such image, and how to build it", async () => {
  const { status, stdout, stderr } = await sandbox.flurry(["run", "--image", "no-such", "--", "true"]);
  expect(status).toBe(2);
  expect(stdout).toBe("");
  expect(stderr).toMatch(/^flurry: No image "no-such"; /);
  expect(stderr).toContain("\n  Build it: flurry image build no-such\n");
  expect(stderr).toEndWith("  code: IMAGE_NOT_FOUND\n");
});

test.each([
  [["--count", "2", "--", "true"], "'--image"],
  [["--image", "base"], "'command'"],
  [["--image", "base", "--count", "0", "--", "true"], "--count takes a whole number from 1 on"],
  [["--image", "base", "--children", "-1", "--", "true"], "--children"],
  [["--image", "base", "--timeout", "soon", "--", "true"], "--timeout takes a number above 0"],
  [["--image", "base", "--env", "NAME", "--", "true"], "--env takes NAME=VALUE"],
  [["--image", "base", "--nope", "--", "true"], "'--nope'"],
])("flurry run %j ends with 2 and says what is wrong", async (args, what) => {
  const { status, stdout, stderr } = await sandbox.flurry(["run", ...args]);
  expect(status).toBe(2);
  expect(stdout).toBe("");
  expect(stderr).toContain(what);
  expect(stderr).toEndWith("  code: BAD_ARGUMENT\n");
});

test("flurry run refuses a directory that holds outputs, before anything runs", async () => {
  const dir = join(sandbox.directory, "full");
  mkdirSync(join(dir, "1"), { recursive: true });
  const args = ["run", "--image", "base", "--count", "2", "--out", dir, "--json", "--", "true"];
  const result = await sandbox.flurry(args);
  expect(result.status).toBe(2);
  const events = eventsOf(result);
  expect(events).toEqual([
    {
      event: "error",
      code: "BAD_ARGUMENT",
      message: `Cannot write to "${dir}": it holds the outputs of task 1 already`,
      hint: "name another directory with --out, or remove that one",
    },
  ]);
  expect(readdirSync(dir)).toEqual(["1"]);
});

test("flurry run refuses a place for outputs that is no directory", async () => {
  const file = join(sandbox.directory, "file");
  writeFileSync(file, "");
  for (const out of [file, join(file, "below")]) {
    const { status, stderr } = await sandbox.flurry(["run", "--image", "base", "--out", out, "--", "true"]);
    expect(status).toBe(2);
    expect(stderr).toContain(`Cannot write to "${out}": `);
    expect(stderr).toEndWith("  code: BAD_ARGUMENT\n");
  }
});

test("flurry run says that QEMU is missing, and what to do", async () => {
  const env = { FLURRY_QEMU: "/nonexistent/qemu" };
  const { status, stderr } = await sandbox.flurry(["run", "--image", "base", "--", "true"], { env });
  expect(status).toBe(3);
  expect(stderr).toContain('flurry: Cannot find QEMU: no executable "/nonexistent/qemu"');
  expect(stderr).toContain("apt-get install qemu-system-x86");
  expect(stderr).toEndWith("  code: QEMU_NOT_FOUND\n");
});
