import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import type { Aim } from "../../bench/aims.ts";
import type { ReforkBenchResult, ReforkFigures } from "../../bench/refork.ts";
import { CliSandbox } from "../support/cli.ts";

let sandbox: CliSandbox;

setDefaultTimeout(180_000);

beforeAll(async () => {
  sandbox = new CliSandbox();
  await sandbox.buildImage("base");
}, 900_000);

afterAll(async () => {
  expect(sandbox.leftovers()).toEqual([]);
  await sandbox[Symbol.asyncDispose]();
});

function expectMeasured({ gapMs, stoppedMs, pauseMs, totalMs, deltaBytes }: ReforkFigures): void {
  for (const { p50, max } of [gapMs, stoppedMs, pauseMs, totalMs, deltaBytes]) {
    expect(p50).toBeGreaterThan(0);
    expect(max).toBeGreaterThanOrEqual(p50);
  }
  expect(pauseMs.p50).toBeGreaterThan(stoppedMs.p50);
  expect(totalMs.p50).toBeGreaterThan(stoppedMs.p50);
}

describe("flurry bench refork", () => {
  test("--json prints one object with every figure measured", async () => {
    const { status, stdout, stderr } = await sandbox.flurry([
      ...[
        "bench",
        "refork",
        "--samples",
        "1",
        "--depth",
        "2",
        "--children",
        "2",
        "--memory",
        "128",
        "--json",
      ],
    ]);
    // With what went wrong, if anything has.
    expect([status, stderr.match(/"event":"error".*/)?.[0]]).toEqual([0, undefined]);
    const result: ReforkBenchResult & { aims: Aim[] } = JSON.parse(stdout);
    expect(Object.keys(result).sort()).toEqual(
      ["accel", "aims", "cores", "dirtied", "forkCall", "generations", "memMiB", "qemu"].sort(),
    );
    // 128 MiB would not fit into the guest.
    expect(result.dirtied.map(({ mib }) => mib)).toEqual([0, 1, 16]);
    expect(result.generations.map(({ generation }) => generation)).toEqual([1, 2]);
    for (const figures of [...result.dirtied, ...result.generations]) expectMeasured(figures);
    const [none, , sixteen] = result.dirtied;
    expect(sixteen!.deltaBytes.p50 - none!.deltaBytes.p50).toBeGreaterThan(15 << 20);
    if (none!.fileMs) expect(none!.fileMs.p50).toBeGreaterThan(none!.stoppedMs.p50);
    expect(result.forkCall.children).toBe(2);
    expect(result.forkCall.allEndedMs.p50).toBeGreaterThan(result.forkCall.callMs.p50);
    expect(result.aims.length).toBeGreaterThan(5);
    for (const { value } of result.aims) expect(value).toBeGreaterThan(0);
  });
});
