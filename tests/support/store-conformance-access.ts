import { describe, expect, test } from "bun:test";
import type { KeyStore, SecretStore } from "../../runtime/jobs/ports.ts";
import type { OpenPort } from "./store-port.ts";

const NOON = "2026-01-31T12:00:00.000Z";

/** What every KeyStore does. */
export function keyStoreConformance(open: OpenPort<KeyStore>): void {
  describe("a KeyStore", () => {
    const key = {
      ...{ id: "k1", name: "builds", scopes: ["submit" as const, "read" as const] },
      ...{ limits: { runningTasks: 4 }, hash: "ab".repeat(32) },
    };

    test("find() gives what was created, with its hash; list() gives no hash", async () => {
      await using store = await open();
      const { hash, ...shown } = key;
      expect(await store.port.create(key)).toEqual({ ...shown, createdAt: NOON });
      store.clock.advance(1);
      await store.port.create({ ...key, id: "k0", limits: {} });
      await store.reopen();
      expect(await store.port.find("k1")).toEqual({ ...shown, createdAt: NOON, hash });
      expect(await store.port.find("k2")).toBeUndefined();
      expect(await store.port.list()).toEqual([
        { ...shown, createdAt: NOON },
        { ...shown, id: "k0", limits: {}, createdAt: "2026-01-31T12:00:00.001Z" },
      ]);
    });

    test("remove() takes a key once and for all", async () => {
      await using store = await open();
      await store.port.create(key);
      expect(await store.port.remove("k1")).toBe(true);
      expect(await store.port.remove("k1")).toBe(false);
      await store.reopen();
      expect(await store.port.find("k1")).toBeUndefined();
      expect(await store.port.list()).toEqual([]);
    });
  });
}

/** What every SecretStore does. */
export function secretStoreConformance(open: OpenPort<SecretStore>): void {
  describe("a SecretStore", () => {
    test.each(["hunter2", " \t\n", "é \u{1f600}", "x".repeat(65_536)])(
      "value() gives %j as it was put, also after a restart",
      async (value) => {
        await using store = await open();
        expect(await store.port.put("token", { value })).toEqual({ name: "token", createdAt: NOON });
        expect(await store.port.value("token", "")).toBe(value);
        await store.reopen();
        expect(await store.port.value("token", "")).toBe(value);
      },
    );

    test("value() gives what is for some keys to these alone, and to everybody where there are no keys", async () => {
      await using store = await open();
      await store.port.put("token", { value: "1", keys: ["ann", "bob"] });
      expect(await store.port.list()).toEqual([{ name: "token", keys: ["ann", "bob"], createdAt: NOON }]);
      const given = async () =>
        Promise.all(["ann", "bob", "eve", "an", undefined, ""].map((key) => store.port.value("token", key)));
      expect(await given()).toEqual(["1", "1", undefined, undefined, undefined, "1"]);
      await store.port.put("token", { value: "2", keys: [] });
      expect(await given()).toEqual([undefined, undefined, undefined, undefined, undefined, "2"]);
      await store.port.put("token", { value: "3" });
      expect(await given()).toEqual(["3", "3", "3", "3", "3", "3"]);
    });

    test("put() replaces, list() has names and times, remove() takes one", async () => {
      await using store = await open();
      await store.port.put("b", { value: "1" });
      await store.port.put("a", { value: "2" });
      store.clock.advance(1000);
      await store.port.put("b", { value: "3" });
      expect(await store.port.value("b", "")).toBe("3");
      expect(await store.port.list()).toEqual([
        { name: "a", createdAt: NOON },
        { name: "b", createdAt: "2026-01-31T12:00:01.000Z" },
      ]);
      expect(await store.port.remove("a")).toBe(true);
      expect(await store.port.remove("a")).toBe(false);
      expect(await store.port.value("a", "")).toBeUndefined();
      expect(await store.port.value("b", "")).toBe("3");
    });
  });
}
