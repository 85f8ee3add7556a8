import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { join } from "node:path";
import { EXAMPLES } from "../../examples/examples.ts";
import { buildImage } from "../../guest-agent/image/mod.ts";
import { openParent } from "../../runtime/fork/open-parent.ts";
import type { Parent } from "../../runtime/fork/parent.ts";
import { flurryHome } from "../../runtime/home.ts";
import { taskWarmUp } from "../../runtime/jobs/task.ts";
import { Host } from "../../runtime/vm/host.ts";
import { pythonTree } from "../support/forked-trees.ts";
import { NO_TRACES, ownDirectories, TEST_MS, tracesOf } from "../support/vm.ts";

/** Items of work, as few as two children can share. */
const ITEMS = "2";

let directories: ReturnType<typeof ownDirectories>;
let host: Host;
let parent: Parent;

beforeAll(async () => {
  directories = ownDirectories();
  host = await Host.open();
  const image = await buildImage(join(import.meta.dirname, "../../examples/image.jsonc"), {
    home: flurryHome(),
  });
  // One parent for all of them: each boot takes longer than an example.
  const prepare = EXAMPLES.map(({ program }) => `python3 ${program} prepare`).join(" && ");
  const warmUp = taskWarmUp(["sh", "-c", prepare]);
  ({ parent } = await openParent({ host, image, memMiB: 512, warmUp }));
}, 900_000);

afterAll(async () => {
  await parent[Symbol.asyncDispose]();
  expect(tracesOf(host)).toEqual(NO_TRACES);
  await host[Symbol.asyncDispose]();
  directories[Symbol.dispose]();
});

describe("the example", () => {
  for (const { name, program, children = 2, ends = [] } of EXAMPLES) {
    test(
      `${name} comes to the same result in forked children as in one VM`,
      async () => {
        const run = async (...args: string[]) => {
          await using tree = await pythonTree(parent);
          const { stdout, stderr, code } = await tree.root.child.agent.run(
            ["python3", program, ...args, ...ends],
            { env: { EXAMPLE_ITEMS: ITEMS }, timeoutMs: TEST_MS },
          );
          // Each holds what came out against what has to, and fails if it is not that.
          expect({ stderr, code }).toEqual({ stderr: "", code: 0 });
          return { stdout, forks: tree.forked, result: /^result (.+)$/m.exec(stdout)?.[1] };
        };
        const forked = await run("fork", String(children));
        const alone = await run("alone");
        expect(forked.result).toBeString();
        expect(forked.result).toBe(alone.result!);
        expect(forked.forks).toBe(children);
        expect(alone.forks).toBe(0);
        if (name === "sat-model") {
          // The longest search of a branch takes a hundred times as long as the shortest one with a model.
          expect(Number(/killed (\d+) of 8/.exec(forked.stdout)?.[1])).toBeGreaterThanOrEqual(1);
        }
      },
      2 * TEST_MS,
    );
  }
});
