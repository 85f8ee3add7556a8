import { describe, expect, test } from "bun:test";
import { rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { systemClock } from "../../runtime/clock.ts";
import { SqliteLogs } from "../../runtime/store/sqlite-logs.ts";
import { rejection } from "../support/agent-peer.ts";
import { canMount, smallTmpfs, temporaryDirectory } from "../support/vm.ts";

describe("SqliteLogs", () => {
  test("is its owner's alone", () => {
    using directory = temporaryDirectory();
    const file = join(directory.path, "logs.db");
    using _logs = new SqliteLogs(file, systemClock);
    expect(statSync(file).mode & 0o777).toBe(0o600);
    expect(statSync(`${file}-wal`).mode & 0o777).toBe(0o600);
  });

  test.skipIf(!canMount)(
    "refuses a batch as a whole when the disk is full, and goes on when it has room",
    async () => {
      using disk = smallTmpfs(4096);
      const filler = join(disk.path, "filler");
      writeFileSync(filler, new Uint8Array(2048 * 1024));
      using logs = new SqliteLogs(join(disk.path, "logs.db"), systemClock);
      const text = "x".repeat(16 * 1024);
      let batches = 0;
      const filling = async () => {
        for (; ; batches++) await logs.append("full", chunksOf(8, text));
      };
      expect((await rejection(filling())).code).toBe("NO_SPACE");
      expect(batches).toBeGreaterThan(0);
      expect(await logs.read("full", { after: 0, limit: 1000 })).toHaveLength(8 * batches);
      rmSync(filler);
      await logs.append("full", chunksOf(8, text));
      await logs.remove("full");
      expect(await logs.read("full", { after: 0, limit: 1000 })).toEqual([]);
    },
  );
});

function chunksOf(count: number, text: string) {
  return Array.from({ length: count }, (_, task) => ({ task, attempt: 1, stream: "stdout" as const, text }));
}
