import { expect, test } from "bun:test";
import { cpSync, mkdirSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { ParentStore } from "../../runtime/fork/parent-store.ts";
import { Host } from "../../runtime/vm/host.ts";
import { madeUpFrozenVm } from "../support/frozen.ts";
import { temporaryDirectory } from "../support/vm.ts";

const KEY = "89abcdef01234567".repeat(4);

test("ParentStore.adopt() keeps one of the same parents that come at the same time, and nothing else", async () => {
  using directory = temporaryDirectory();
  const [there, here] = ["there", "here"].map((name) => join(directory.path, name)) as [string, string];
  mkdirSync(there);
  mkdirSync(here);
  await using other = await Host.open({ home: there });
  const made = await new ParentStore(other).put(
    KEY,
    madeUpFrozenVm(directory.path, "parent", Buffer.alloc(300_000, 7)),
  );
  await using host = await Host.open({ home: here });
  const store = new ParentStore(host);
  const stagings = [await store.staging(), await store.staging()];
  for (const staging of stagings) {
    cpSync(dirname(made.imagePath), staging, { recursive: true });
    rmSync(join(staging, "verified"));
    writeFileSync(join(staging, "memory.map"), "");
  }
  const adopted = await Promise.all(stagings.map((staging) => store.adopt(KEY, made.hash, staging)));
  expect(adopted.map(({ hash }) => hash)).toEqual([made.hash, made.hash]);
  expect((await store.find(KEY))?.imagePath).toBe(adopted[0]!.imagePath);
  expect(readdirSync(join(here, "parents")).sort()).toEqual([made.hash, "by-key"].sort());
  const files = ["descriptor", "memory", "pages", "verified"];
  expect(readdirSync(join(here, "parents", made.hash)).sort()).toEqual(files);
});
