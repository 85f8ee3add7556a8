import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { CliSandbox } from "../support/cli.ts";

const MIB = 1024 * 1024;
/** 100 bytes a line with the newline. */
const LINE = "0123456789".repeat(10).slice(0, 99);
const LINES = 524_288;
const FLOOD = ["sh", "-c", `yes ${LINE} | head -n ${LINES}`];

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

describe("flurry run of a command that prints 50 MiB", () => {
  test("passes every byte on and keeps none of them", async () => {
    const run = sandbox.start(["run", "--image", "base", "--", ...FLOOD], { discard: true });
    let bytes = 0;
    let early = 0;
    let late = 0;
    run.process.stdout?.on("data", (chunk: string) => {
      bytes += chunk.length;
      // The peak only grows: what it is after a tenth is the price of running at all.
      if (early === 0 && bytes > 5 * MIB) early = run.peakMemory();
      if (bytes < 50 * MIB) late = run.peakMemory() || late;
    });
    const { status, stderr } = await run.ended;
    expect(stderr).toContain("1 of 1 tasks succeeded");
    expect(status).toBe(0);
    expect(bytes).toBe(LINES * `[0] ${LINE}\n`.length);
    expect(early).toBeGreaterThan(0);
    expect(late - early).toBeLessThan(40 * MIB);
  });

  test("holds the command up while nobody reads", async () => {
    const script = `[ $FLURRY_TASK_INDEX = 0 ] && { ${FLOOD[2]}; exit; }; sleep 5; exit 1`;
    const args = ["run", "--image", "base", "--count", "2", "--children", "2", "--", "sh", "-c", script];
    const run = sandbox.start(args, { discard: true });
    let bytes = 0;
    run.process.stdout?.on("data", (chunk: string) => {
      bytes += chunk.length;
    });
    await run.until(/Tasks \.\.\./);
    await new Promise((resolve) => run.process.stdout?.once("data", resolve));
    run.process.stdout?.pause();
    const before = run.peakMemory();
    const read = bytes;
    // By then the first task, unhindered, would have printed it all.
    await run.until(/\[1\] failed: exit status 1/);
    expect(bytes).toBe(read);
    expect(run.peakMemory() - before).toBeLessThan(30 * MIB);
    run.process.stdout?.resume();
    const { status, stderr } = await run.ended;
    expect(status).toBe(4);
    expect(stderr).toContain("1 of 2 tasks succeeded");
    expect(bytes).toBe(LINES * `[0] ${LINE}\n`.length);
  });

  test("with --json gives one object a line", async () => {
    const run = sandbox.start(["run", "--image", "base", "--json", "--", ...FLOOD], { discard: true });
    let lines = 0;
    let partial = "";
    run.process.stdout?.on("data", (chunk: string) => {
      const parts = (partial + chunk).split("\n");
      partial = parts.pop() ?? "";
      for (const part of parts) if (part === `{"event":"stdout","task":0,"line":"${LINE}"}`) lines += 1;
    });
    expect((await run.ended).status).toBe(0);
    expect(lines).toBe(LINES);
    expect(partial).toBe("");
  });
});

test("flurry run shows a line that never ends in pieces, and bytes that are no text", async () => {
  const script = "head -c 300000 /dev/zero | tr '\\0' x; printf '\\377\\nend\\n'";
  const { status, stdout } = await sandbox.flurry(["run", "--image", "base", "--", "sh", "-c", script]);
  expect(status).toBe(0);
  const lines = stdout.trimEnd().split("\n");
  for (const line of lines) expect(line).toStartWith("[0] ");
  const text = lines.map((line) => line.slice(4)).join("");
  expect(text).toBe(`${"x".repeat(300_000)}\u{fffd}end`);
  expect(lines.length).toBeGreaterThan(2);
});
