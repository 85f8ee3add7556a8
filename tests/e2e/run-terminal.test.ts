import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { CliSandbox } from "../support/cli.ts";

const COMMAND = ["run", "--image", "base", "--count", "3", "--", "sh", "-c", "echo from $FLURRY_TASK_INDEX"];
/** Goes to the start of the line and clears it. */
const REDRAW = "\r\u001b[K";

let sandbox: CliSandbox;

setDefaultTimeout(120_000);

beforeAll(async () => {
  sandbox = new CliSandbox();
  await sandbox.buildImage("base");
}, 900_000);

afterAll(async () => {
  expect(sandbox.leftovers()).toEqual([]);
  await sandbox[Symbol.asyncDispose]();
});

test("on a terminal a bar moves while tasks end, and their lines stay whole", async () => {
  const { status, stdout } = await sandbox.flurry(COMMAND, { terminal: true });
  expect(status).toBe(0);
  const drawn = stdout.split(REDRAW);
  for (const done of [0, 1, 2, 3]) {
    expect(drawn.some((text) => /^Tasks [█░]{20} /.test(text) && text.includes(` ${done}/3`))).toBe(true);
  }
  for (const index of [0, 1, 2]) expect(drawn).toContain(`[${index}] from ${index}\r\n`);
  expect(drawn.at(-1)).toMatch(/^3 of 3 tasks succeeded in .*\r\n$/);
});

test("on a terminal the guest's firmware cannot clear the screen", async () => {
  const { status, stdout } = await sandbox.flurry(
    ["run", "--fresh", "--memory", "128", ...COMMAND.slice(1)],
    {
      terminal: true,
    },
  );
  expect(status).toBe(0);
  expect(stdout).toContain("SeaBIOS");
  expect(stdout.replaceAll("\u001b[K", "")).not.toContain("\u001b");
});

test("off a terminal there are no control characters, and the exit code is the same", async () => {
  const { status, stdout, stderr } = await sandbox.flurry(["run", "--fresh", ...COMMAND.slice(1)]);
  expect(status).toBe(0);
  expect(stdout.replaceAll("\n", "")).not.toMatch(/\p{Cc}/u);
  expect(stderr.replaceAll("\n", "")).not.toMatch(/\p{Cc}/u);
  expect(stderr).toMatch(/^Parent: booting \((tcg|kvm): /m);
  expect(stderr).toMatch(/^Parent: booted in /m);
});
