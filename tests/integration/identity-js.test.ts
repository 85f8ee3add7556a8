import { expect, test } from "bun:test";
import { benchIdentity } from "../../bench/identity.ts";
import { Host } from "../../runtime/vm/host.ts";
import { TEST_MS } from "../support/vm.ts";
import { homeWithImages } from "../support/workers-runtime.ts";

const CHILDREN = 64;

test(
  `${CHILDREN} children of a JS worker have no random number and no name in common, nor has their parent`,
  async () => {
    using home = await homeWithImages();
    await using host = await Host.open({ home: home.path });
    const { sources, identifyMs } = await benchIdentity({ host, n: CHILDREN, memMiB: 256 });
    expect(sources.filter(({ collisions }) => collisions > 0)).toEqual([]);
    for (const { source, draws } of sources) expect([source, draws]).toEqual([source, expect.any(Number)]);
    expect(sources.length).toBeGreaterThan(25);
    for (const { draws } of sources) expect(draws).toBeGreaterThanOrEqual(CHILDREN);
    const { kernel, hooks } = identifyMs;
    process.stderr.write(`identity: ${kernel.p50} ms of the kernel, ${hooks.p50} ms of the worker\n`);
  },
  TEST_MS,
);
