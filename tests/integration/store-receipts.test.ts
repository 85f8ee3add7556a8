import { describe, expect, test } from "bun:test";
import { generateKeyPairSync, verify } from "node:crypto";
import { readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { SigningKey } from "../../runtime/store/signing-key.ts";
import { SqliteReceipts } from "../../runtime/store/sqlite-receipts.ts";
import { rejection } from "../support/agent-peer.ts";
import { canMount, Script, smallTmpfs, temporaryDirectory } from "../support/vm.ts";

const opensKey = join(import.meta.dirname, "../support/opens-signing-key.ts");

describe("SigningKey", () => {
  test("is made at the first use, for its owner alone, and is the same ever after", async () => {
    using directory = temporaryDirectory();
    const path = join(directory.path, "receipts.key");
    const first = await SigningKey.open(path);
    expect(statSync(path).mode & 0o777).toBe(0o600);
    expect(readdirSync(directory.path)).toEqual(["receipts.key"]);
    // Of one who was killed while it made the key.
    writeFileSync(`${path}.${crypto.randomUUID()}`, "half");
    const second = await SigningKey.open(path);
    expect(readdirSync(directory.path)).toEqual(["receipts.key"]);
    expect(second.publicKey).toBe(first.publicKey);
    expect(readFileSync(path, "utf8")).not.toContain(first.publicKey);
    const signature = Buffer.from(first.sign("ä"), "base64");
    expect(verify(null, Buffer.from("ä"), second.publicKey, signature)).toBe(true);
    expect(verify(null, Buffer.from("a"), second.publicKey, signature)).toBe(false);
  });

  test("is the same for all who make it at the same time", async () => {
    using directory = temporaryDirectory();
    const path = join(directory.path, "receipts.key");
    await using one = new Script(opensKey, [path]);
    await using two = new Script(opensKey, [path]);
    const there = Promise.all([one.line(), two.line()]);
    const here = Promise.all(Array.from({ length: 8 }, async () => (await SigningKey.open(path)).publicKey));
    const keys = [...(await here), ...(await there).map((line) => JSON.parse(line))];
    expect(new Set(keys).size).toBe(1);
    expect(readdirSync(directory.path)).toEqual(["receipts.key"]);
  });

  test.each([
    ["nothing", () => ""],
    ["half a key", () => "-----BEGIN PRIVATE KEY-----\nMC4CAQ"],
    [
      "another kind of key",
      () => generateKeyPairSync("x25519").privateKey.export({ type: "pkcs8", format: "pem" }),
    ],
  ])("refuses a file with %s, and leaves it as it is", async (_what, text) => {
    using directory = temporaryDirectory();
    const path = join(directory.path, "receipts.key");
    const content = text();
    writeFileSync(path, content);
    const error = await rejection(SigningKey.open(path));
    expect(error.code).toBe("STORE_FAILED");
    expect(error.message).toContain(path);
    expect(readFileSync(path, "utf8")).toBe(content.toString());
  });
});

describe("SqliteReceipts", () => {
  test("signs what it keeps, also after a restart, and knows no others", async () => {
    using directory = temporaryDirectory();
    const key = await SigningKey.open(join(directory.path, "receipts.key"));
    const file = join(directory.path, "receipts.db");
    {
      using receipts = new SqliteReceipts(file, key);
      await receipts.add([]);
      await receipts.add([
        { vm: "vm-1", payload: '{"of":"ä"}' },
        { vm: "vm-2", payload: "two" },
      ]);
      expect(statSync(file).mode & 0o777).toBe(0o600);
    }
    using receipts = new SqliteReceipts(file, key);
    const found = await receipts.find("vm-1");
    expect(found).toEqual({
      ...{ vm: "vm-1", payload: '{"of":"ä"}', publicKey: key.publicKey },
      signature: expect.any(String),
    });
    const signature = Buffer.from(found!.signature, "base64");
    expect(verify(null, Buffer.from('{"of":"ä"}'), key.publicKey, signature)).toBe(true);
    expect(await receipts.find("vm-3")).toBeUndefined();
  });

  test("keeps the newest ones, and of the others no more than 1000", async () => {
    using directory = temporaryDirectory();
    const key = await SigningKey.open(join(directory.path, "receipts.key"));
    using receipts = new SqliteReceipts(join(directory.path, "receipts.db"), key, { keep: 50 });
    const all = Array.from({ length: 3000 }, (_, at) => ({ vm: `vm-${at}`, payload: `${at}` }));
    for (let at = 0; at < all.length; at += 100) await receipts.add(all.slice(at, at + 100));
    const found = await Promise.all(all.map(({ vm }) => receipts.find(vm)));
    const kept = found.flatMap((one, at) => (one === undefined ? [] : [at]));
    expect(kept.slice(-50)).toEqual(Array.from({ length: 50 }, (_, at) => 2950 + at));
    expect(kept.length).toBeLessThanOrEqual(1150);
    expect(kept).toEqual(Array.from({ length: kept.length }, (_, at) => 3000 - kept.length + at));
  });

  test.skipIf(!canMount)(
    "refuses all of them when the disk is full, and goes on when it has room",
    async () => {
      using disk = smallTmpfs(4096);
      const key = await SigningKey.open(join(disk.path, "receipts.key"));
      using receipts = new SqliteReceipts(join(disk.path, "receipts.db"), key);
      const filler = join(disk.path, "filler");
      writeFileSync(filler, new Uint8Array(3000 * 1024));
      const payload = "x".repeat(2 << 20);
      expect(
        (
          await rejection(
            receipts.add([
              { vm: "a", payload: "a" },
              { vm: "b", payload },
            ]),
          )
        ).code,
      ).toBe("NO_SPACE");
      expect(await receipts.find("a")).toBeUndefined();
      rmSync(filler);
      await receipts.add([{ vm: "a", payload: "a" }]);
      expect(await receipts.find("a")).toMatchObject({ payload: "a" });
    },
  );
});
