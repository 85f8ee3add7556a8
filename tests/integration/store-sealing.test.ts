import { describe, expect, test } from "bun:test";
import { randomBytes } from "node:crypto";
import { readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { FlurryError } from "../../errors/errors.ts";
import { systemClock } from "../../runtime/clock.ts";
import { Database } from "../../runtime/store/database.ts";
import { migrate } from "../../runtime/store/migrations.ts";
import { Sealer } from "../../runtime/store/sealing.ts";
import { SqliteDeliveries } from "../../runtime/store/sqlite-deliveries.ts";
import { SqliteSecrets } from "../../runtime/store/sqlite-secrets.ts";
import { rejection } from "../support/agent-peer.ts";
import { canMount, smallTmpfs, temporaryDirectory } from "../support/vm.ts";

const SEED = 20090402;
const VALUE = "the-value-that-nobody-may-see";

describe("Sealer", () => {
  test("creates its key file once, for its owner alone", async () => {
    using directory = temporaryDirectory();
    const path = join(directory.path, "secret.key");
    const sealed = (await Sealer.open(path)).seal(VALUE, "secret a");
    const key = readFileSync(path, "utf8");
    expect(key).toMatch(/^[0-9a-f]{64}\n$/);
    expect(statSync(path).mode & 0o777).toBe(0o600);
    expect(readdirSync(directory.path)).toEqual(["secret.key"]);
    expect((await Sealer.open(path)).unseal(sealed, "secret a")).toBe(VALUE);
    expect(readFileSync(path, "utf8")).toBe(key);
  });

  test("does not take what a killed start left for a key", async () => {
    using directory = temporaryDirectory();
    const path = join(directory.path, "secret.key");
    writeFileSync(`${path}.new`, "0123");
    await Sealer.open(path);
    expect(readFileSync(path, "utf8")).toMatch(/^[0-9a-f]{64}\n$/);
    expect(readdirSync(directory.path)).toEqual(["secret.key"]);
  });

  test.each(["", "0123\n", `${"0".repeat(63)}g\n`, `${"0".repeat(64)}\n\n`])(
    "refuses %j as a key file, and leaves it alone",
    async (text) => {
      using directory = temporaryDirectory();
      const path = join(directory.path, "secret.key");
      writeFileSync(path, text);
      const error = await rejection(Sealer.open(path));
      expect(error.code).toBe("STORE_FAILED");
      expect(error.message).toContain(path);
      expect(readFileSync(path, "utf8")).toBe(text);
    },
  );

  test.skipIf(!canMount)("leaves no key file on a full disk", async () => {
    using disk = smallTmpfs(64);
    writeFileSync(join(disk.path, "filler"), new Uint8Array(48 * 1024));
    const path = join(disk.path, "secret.key");
    fill(disk.path);
    expect((await rejection(Sealer.open(path))).code).toBe("NO_SPACE");
    expect(readdirSync(disk.path)).not.toContain("secret.key");
    rmSync(join(disk.path, "filler"));
    await Sealer.open(path);
  });

  test("unseals what it sealed, never the same twice, and nothing that has changed anywhere", async () => {
    using directory = temporaryDirectory();
    const sealer = await Sealer.open(join(directory.path, "secret.key"));
    fc.assert(
      fc.property(
        fc.string({ unit: "grapheme" }),
        fc.string(),
        fc.string(),
        fc.nat(),
        fc.integer({ min: 1, max: 255 }),
        (value, owner, other, at, flip) => {
          const sealed = sealer.seal(value, owner);
          expect(sealer.unseal(sealed, owner)).toBe(value);
          expect(Buffer.from(sealer.seal(value, owner)).equals(sealed)).toBe(false);
          const changed = Uint8Array.from(sealed);
          changed[at % changed.length]! ^= flip;
          expect(unsealing(sealer, changed, owner)).toBe("STORE_FAILED");
          expect(unsealing(sealer, sealed.subarray(0, at % sealed.length), owner)).toBe("STORE_FAILED");
          if (other !== owner) expect(unsealing(sealer, sealed, other)).toBe("STORE_FAILED");
        },
      ),
      { seed: SEED, numRuns: 300 },
    );
  });
});

describe("SqliteSecrets", () => {
  test("says so when the key file is another one or is gone, and takes new values then", async () => {
    using directory = temporaryDirectory();
    const path = join(directory.path, "secret.key");
    {
      using store = await openSecrets(directory.path);
      await store.secrets.put("token", { value: VALUE });
    }
    const key = readFileSync(path);
    rmSync(path);
    {
      using store = await openSecrets(directory.path);
      const error = await rejection(store.secrets.value("token", ""));
      expect(error.code).toBe("STORE_FAILED");
      expect(error.message).toBe(`Cannot decrypt secret "token" with the key in "${path}"`);
      expect((error as FlurryError).hint).toContain("Put the key file back");
      expect(await store.secrets.list()).toHaveLength(1);
      await store.secrets.put("other", { value: "new" });
      expect(await store.secrets.value("other", "")).toBe("new");
    }
    writeFileSync(path, key);
    using store = await openSecrets(directory.path);
    expect(await store.secrets.value("token", "")).toBe(VALUE);
  });

  test("does not give one secret's value for another one's", async () => {
    using directory = temporaryDirectory();
    using store = await openSecrets(directory.path);
    await store.secrets.put("mine", { value: VALUE });
    await store.secrets.put("yours", { value: "another value" });
    store.database.run(
      "UPDATE secrets SET sealed = (SELECT sealed FROM secrets WHERE name = 'mine') WHERE name = 'yours'",
    );
    expect((await rejection(store.secrets.value("yours", ""))).code).toBe("STORE_FAILED");
    expect(await store.secrets.value("mine", "")).toBe(VALUE);
  });
});

describe("SqliteDeliveries", () => {
  test("fails a message whose secret cannot be decrypted, and gives the others out", async () => {
    using directory = temporaryDirectory();
    const path = join(directory.path, "secret.key");
    const enqueue = (store: SqliteDeliveries, id: string, secret?: string) =>
      store.enqueue({
        ...{ id, job: "job", event: "job.failed", url: "https://example.com/", body: "{}" },
        secret: secret && store.seal("job", secret),
      });
    {
      using store = await openSecrets(directory.path);
      enqueue(store.deliveries, "m1", VALUE);
      enqueue(store.deliveries, "m2");
    }
    writeFileSync(path, `${randomBytes(32).toString("hex")}\n`);
    using store = await openSecrets(directory.path);
    enqueue(store.deliveries, "m3", "a new secret");
    const due = await store.deliveries.takeDue(10);
    expect(due.map(({ id, secret }) => [id, secret ?? ""])).toEqual([
      ["m2", ""],
      ["m3", "a new secret"],
    ]);
    const [failed] = await store.deliveries.list("job");
    expect(failed).toMatchObject({ id: "m1", state: "failed", attempts: [{ ms: 0 }] });
    expect(failed!.attempts[0]!.error).toContain("Cannot decrypt the webhook secret of job");
  });
});

async function openSecrets(dir: string) {
  const sealer = await Sealer.open(join(dir, "secret.key"));
  const database = new Database(join(dir, "flurry.db"));
  migrate(database);
  return {
    database,
    secrets: new SqliteSecrets(database, systemClock, sealer),
    deliveries: new SqliteDeliveries(database, systemClock, sealer),
    [Symbol.dispose]: () => database[Symbol.dispose](),
  };
}

function unsealing(sealer: Sealer, sealed: Uint8Array, owner: string): string {
  try {
    return `unsealed ${sealer.unseal(sealed, owner)}`;
  } catch (error) {
    return error instanceof FlurryError ? error.code : String(error);
  }
}

/** Takes the last page of a file system. */
function fill(dir: string): void {
  for (let number = 0; ; number++) {
    try {
      writeFileSync(join(dir, `page-${number}`), new Uint8Array(4096));
    } catch (error) {
      if (error instanceof Error && "code" in error && error.code === "ENOSPC") return;
      throw error;
    }
  }
}
