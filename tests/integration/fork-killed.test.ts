import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { Host } from "../../runtime/vm/host.ts";
import { pythonParent } from "../support/forked-trees.ts";
import { NO_TRACES, ownDirectories, Script, SETUP_MS, TEST_MS, tracesOf } from "../support/vm.ts";

/** In the order in which a fork goes through them. */
const STEPS = [
  ...["-quiesce", "+quiesce", "+stop", "+changed", "+xen-save-devices-state", "-cont", "+cont", "-release"],
  ...["+load", "-identify", "+identify", "+fork"],
];

let own: ReturnType<typeof ownDirectories>;

beforeAll(async () => {
  own = ownDirectories();
  await using host = await Host.open();
  await using _parent = await pythonParent(host);
}, SETUP_MS);

afterAll(() => own[Symbol.dispose]());

describe("a runtime that is killed in the middle of a fork", () => {
  for (const step of STEPS) {
    test(
      `leaves no VM of the family, and no file, at ${step}`,
      async () => {
        await using script = new Script(join(import.meta.dirname, "../support/dies-in-fork.ts"), [step]);
        const line = await script.line();
        const processes: number[] = JSON.parse(line);
        // The first VM, and shells or children.
        expect(processes.length).toBeGreaterThanOrEqual(2);
        expect(await script.exited).toMatchObject({ signal: "SIGKILL", stderr: "" });
        await using host = await Host.open();
        expect(processes.filter((pid) => existsSync(`/proc/${pid}/exe`))).toEqual([]);
        expect(tracesOf(host)).toEqual(NO_TRACES);
      },
      TEST_MS,
    );
  }

  test(
    "is not killed by the test where nothing is asked for",
    async () => {
      await using script = new Script(join(import.meta.dirname, "../support/dies-in-fork.ts"), ["-nothing"]);
      expect(await script.line()).toBe("survived 5");
    },
    TEST_MS,
  );
});
