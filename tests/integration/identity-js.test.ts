import { expect, test } from "bun:test";
import { benchIdentity } from "../../bench/identity.ts";
import { flurryHome } from "../../runtime/home.ts";
import { Host } from "../../runtime/vm/host.ts";
import { jsImage } from "../../runtime/workers/js/js-image.ts";
import { openJsParent } from "../../runtime/workers/js/js-parent.ts";
import { rejection } from "../support/agent-peer.ts";
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

test(
  "a worker that has started threads in its parent does not load, and is told where to start them",
  async () => {
    using home = await homeWithImages();
    await using host = await Host.open({ home: home.path });
    const code = `const thread = new Worker(URL.createObjectURL(new Blob(["setInterval(() => {}, 1000)"])));
      export default { fetch: () => new Response() };`;
    const bundle = { code, bytes: code.length, hash: "threads" };
    const image = await jsImage({ home: flurryHome() });
    const error = await rejection(openJsParent({ host, image, name: "threads", bundle, memMiB: 256 }));
    expect(error).toMatchObject({ code: "TASK_FAILED" });
    expect(error.message).toContain(
      "the worker has 1 threads, which cannot be forked: start them in onFork()",
    );
  },
  TEST_MS,
);
