import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { mkdirSync, readdirSync, statSync, watch } from "node:fs";
import { join } from "node:path";
import { processesOf } from "../../runtime/vm/owner.ts";
import { CliSandbox } from "../support/cli.ts";

/** Two tasks that never end, and one that waits for a place. */
const ENDLESS = ["run", "--image", "base", "--count", "3", "--children", "2", "--", "sh", "-c"];
const SCRIPT = "echo ready; exec sleep 1000000";

let sandbox: CliSandbox;

setDefaultTimeout(120_000);

beforeAll(async () => {
  sandbox = new CliSandbox();
  await sandbox.buildImage("base");
}, 900_000);

afterAll(async () => {
  await sandbox[Symbol.asyncDispose]();
});

/** Starts the endless run; resolves when both tasks are under way. */
async function startEndless(options: { terminal?: boolean } = {}) {
  const run = sandbox.start([...ENDLESS, SCRIPT], options);
  await run.until(/\[0\] ready/);
  await run.until(/\[1\] ready/);
  expect(processesOf(sandbox.run).length).toBeGreaterThanOrEqual(2);
  return run;
}

/** What any next command does first: it sweeps what dead ones left. */
async function nextRun() {
  const { status, stdout } = await sandbox.flurry(["run", "--image", "base", "--", "echo", "next"]);
  expect({ status, stdout }).toEqual({ status: 0, stdout: "[0] next\n" });
}

describe("flurry run that is interrupted", () => {
  test.each(["SIGINT", "SIGTERM", "SIGHUP"] as const)(
    "by %s ends with 130, and nothing is left",
    async (signal) => {
      const run = await startEndless();
      run.kill(signal);
      const { status, stderr } = await run.ended;
      expect(status).toBe(130);
      expect(stderr).toEndWith(`flurry: Interrupted by ${signal}\n  code: ABORTED\n`);
      expect(sandbox.leftovers()).toEqual([]);
    },
  );

  test("by Ctrl-C on a terminal, which QEMU gets too, does the same", async () => {
    const run = await startEndless({ terminal: true });
    run.process.stdin?.write("\u0003");
    const { status, stdout } = await run.ended;
    expect(status).toBe(130);
    expect(stdout).toEndWith("flurry: Interrupted by SIGINT\r\n  code: ABORTED\r\n");
    expect(sandbox.leftovers()).toEqual([]);
  });

  test("while the parent boots leaves nothing either", async () => {
    const run = sandbox.start(["run", "--image", "base", "--fresh", "--", "true"]);
    await run.until(/booting: .*SeaBIOS/);
    run.kill("SIGINT");
    const { status, stderr } = await run.ended;
    expect(status).toBe(130);
    expect(stderr).toContain("code: ABORTED");
    expect(sandbox.leftovers()).toEqual([]);
  });
});

describe("flurry run that is killed", () => {
  test("in mid-task leaves nothing after the next command", async () => {
    const run = await startEndless();
    run.kill("SIGKILL");
    expect((await run.ended).signal).toBe("SIGKILL");
    expect(sandbox.leftovers()).not.toEqual([]);
    await nextRun();
    expect(sandbox.leftovers()).toEqual([]);
  });

  test("takes no other run with it", async () => {
    const killed = await startEndless();
    const other = await startEndless();
    const all = readdirSync(sandbox.run);
    killed.kill("SIGKILL");
    await killed.ended;
    await nextRun();
    const [left, ...more] = readdirSync(sandbox.run);
    expect(all).toContain(left ?? "none");
    expect(left).toContain(`-${other.pid}-`);
    expect(more).toEqual([]);
    expect(processesOf(join(sandbox.run, left ?? "none")).length).toBeGreaterThanOrEqual(2);
    other.kill("SIGINT");
    expect((await other.ended).status).toBe(130);
    expect(sandbox.leftovers()).toEqual([]);
  });

  test("while the parent boots leaves no memory after the next command", async () => {
    const run = sandbox.start(["run", "--image", "base", "--fresh", "--", "true"]);
    await run.until(/booting: .*SeaBIOS/);
    const [runtime] = readdirSync(sandbox.shm);
    expect(readdirSync(join(sandbox.shm, runtime ?? "none"))).toEqual([expect.stringMatching(/\.ram$/)]);
    run.kill("SIGKILL");
    await run.ended;
    expect(sandbox.leftovers()).not.toEqual([]);
    await nextRun();
    expect(sandbox.leftovers()).toEqual([]);
  });

  test("while outputs arrive leaves none of them after the next run into the same directory", async () => {
    const dir = join(sandbox.directory, "outputs");
    mkdirSync(dir);
    const script = "head -c 100000000 /dev/zero > /out/big";
    const run = sandbox.start(["run", "--image", "base", "--out", dir, "--", "sh", "-c", script]);
    const watcher = watch(dir);
    await new Promise((resolve) => watcher.once("change", resolve));
    run.kill("SIGKILL");
    watcher.close();
    await run.ended;
    expect(readdirSync(dir)).toEqual([expect.stringMatching(/^\.tmp-.*-0$/)]);
    const again = await sandbox.flurry(["run", "--image", "base", "--out", dir, "--", "sh", "-c", script]);
    expect(again.status).toBe(0);
    expect(readdirSync(dir)).toEqual(["0"]);
    expect(statSync(join(dir, "0", "big")).size).toBe(100_000_000);
    expect(sandbox.leftovers()).toEqual([]);
  });
});
