import { describe, expect, test } from "bun:test";
import { readdirSync, readFileSync, renameSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { openStore } from "../../runtime/store/open.ts";
import { rejection } from "../support/agent-peer.ts";
import { expectFilled, fillStore, SECRET, WEBHOOK_SECRET } from "../support/store-filled.ts";
import { openDescriptors, openedSince, Script, temporaryDirectory } from "../support/vm.ts";

const fillsStore = fileURLToPath(new URL("../support/fills-store.ts", import.meta.url));

describe("openStore()", () => {
  test("finds again all that was there when it was closed, also at another place, and holds no file then", async () => {
    using directory = temporaryDirectory();
    const dir = join(directory.path, "data");
    const before = openDescriptors();
    {
      await using store = await openStore({ dir });
      await fillStore(store);
    }
    expect(openedSince(before)).toEqual([]);
    const moved = join(directory.path, "moved");
    renameSync(dir, moved);
    await using store = await openStore({ dir: moved });
    await expectFilled(store);
  });

  test("finds again all that was there when its process was killed, once that is gone", async () => {
    using directory = temporaryDirectory();
    const dir = join(directory.path, "data");
    await using gateway = new Script(fillsStore, [dir]);
    expect(await gateway.line()).toBe("filled");
    const refused = await rejection(openStore({ dir }));
    expect(refused.code).toBe("DATA_IN_USE");
    expect(refused.message).toContain(String(gateway.pid));
    await gateway.kill();
    await using store = await openStore({ dir });
    await expectFilled(store);
  });

  test("leaves no secret in plain in any file, nor anything that others may read", async () => {
    using directory = temporaryDirectory();
    const dir = join(directory.path, "data");
    const umask = process.umask(0);
    try {
      await using store = await openStore({ dir });
      await fillStore(store);
      // That ids are found shows that the search works.
      expectIn(dir, "job_0123456789abcdef01234567", true);
      expectSecretsKept(dir);
    } finally {
      process.umask(umask);
    }
    expectSecretsKept(dir);
  });

  test("has nothing open and nothing locked when it cannot be opened", async () => {
    using directory = temporaryDirectory();
    const dir = join(directory.path, "data");
    await (await openStore({ dir }))[Symbol.asyncDispose]();
    const before = openDescriptors();
    renameSync(join(dir, "secret.key"), join(dir, "kept.key"));
    writeFileSync(join(dir, "secret.key"), "no key");
    expect((await rejection(openStore({ dir }))).code).toBe("STORE_FAILED");
    expect(openedSince(before)).toEqual([]);
    renameSync(join(dir, "kept.key"), join(dir, "secret.key"));
    await using _store = await openStore({ dir });
  });
});

function expectSecretsKept(dir: string): void {
  for (const secret of [SECRET, WEBHOOK_SECRET]) {
    for (const form of [secret, btoa(secret), Buffer.from(secret).toString("hex")])
      expectIn(dir, form, false);
  }
  for (const path of pathsBelow(dir)) expect([path, statSync(path).mode & 0o077]).toEqual([path, 0]);
}

/** Whether a text is in one of the files of a directory. */
function expectIn(dir: string, text: string, found: boolean): void {
  const files = pathsBelow(dir).filter((path) => statSync(path).isFile());
  expect(files.some((path) => readFileSync(path).includes(text))).toBe(found);
}

function pathsBelow(dir: string): string[] {
  return [dir, ...readdirSync(dir, { recursive: true, encoding: "utf8" }).map((path) => join(dir, path))];
}
