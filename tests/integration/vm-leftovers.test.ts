import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { Host } from "../../runtime/vm/host.ts";
import { startTimeOf } from "../../runtime/vm/owner.ts";
import { baseParent, NO_TRACES, ownDirectories, Script, SETUP_MS, TEST_MS, tracesOf } from "../support/vm.ts";

const BUSY_RUNTIME = join(import.meta.dirname, "../support/busy-runtime.ts");

interface Busy {
  processes: number[];
  files: string[];
  survivor: number;
}

beforeAll(async () => {
  await using host = await Host.open();
  // Boots the parent now if there is none, so that the programs below find it on disk.
  await using _parent = await baseParent(host);
}, SETUP_MS);

let own: ReturnType<typeof ownDirectories>;

beforeAll(() => {
  own = ownDirectories();
});

afterAll(() => own[Symbol.dispose]());

async function busyRuntime(): Promise<{ script: Script; busy: Busy } & AsyncDisposable> {
  const script = new Script(BUSY_RUNTIME);
  const busy = JSON.parse(await script.line()) as Busy;
  return { script, busy, [Symbol.asyncDispose]: () => script[Symbol.asyncDispose]() };
}

function alive(pids: readonly number[]): number[] {
  return pids.filter((pid) => startTimeOf(pid) !== undefined && existsSync(`/proc/${pid}/exe`));
}

describe("a runtime that was killed in mid-run", () => {
  test(
    "leaves nothing after the next start",
    async () => {
      await using runtime = await busyRuntime();
      const { script, busy } = runtime;
      // Two children, two shells, a VM that boots and the one that does not die by itself.
      expect(busy.processes).toHaveLength(6);
      expect(busy.files.length).toBeGreaterThanOrEqual(6);
      expect(alive(busy.processes)).toEqual(busy.processes);

      // While it lives, nobody touches what it has.
      {
        await using other = await Host.open();
        expect(tracesOf(other)).toEqual(NO_TRACES);
        expect(alive(busy.processes)).toEqual(busy.processes);
        expect(busy.files.filter((path) => !existsSync(path))).toEqual([]);
      }

      await script.kill();
      expect(alive([busy.survivor])).toEqual([busy.survivor]);
      expect(readdirSync(own.run)).toHaveLength(1);
      expect(readdirSync(own.shm)).toHaveLength(1);
      await using host = await Host.open();
      expect(alive(busy.processes)).toEqual([]);
      expect(busy.files.filter(existsSync)).toEqual([]);
      expect(tracesOf(host)).toEqual(NO_TRACES);
      expect(readdirSync(own.run)).toHaveLength(1);
      expect(readdirSync(own.shm)).toHaveLength(1);
    },
    TEST_MS,
  );

  test(
    "takes its VMs with it, before anybody else comes",
    async () => {
      await using runtime = await busyRuntime();
      const { script, busy } = runtime;
      const vms = busy.processes.filter((pid) => pid !== busy.survivor);
      await script.kill();
      while (alive(vms).length > 0) await new Promise((resolve) => setTimeout(resolve, 5));
      await using _host = await Host.open();
      expect(alive([busy.survivor])).toEqual([]);
    },
    TEST_MS,
  );
});
