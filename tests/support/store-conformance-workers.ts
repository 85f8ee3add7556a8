import { describe, expect, test } from "bun:test";
import { type Page, WorkerSpec } from "../../runtime/api/mod.ts";
import type { StoredWorker, WorkerStore } from "../../runtime/jobs/ports.ts";
import { rejection } from "./agent-peer.ts";
import type { OpenPort } from "./store-port.ts";

/** What every WorkerStore does. */
export function workerStoreConformance(open: OpenPort<WorkerStore>): void {
  describe("a WorkerStore", () => {
    test("put() makes versions, and the newest the current one", async () => {
      await using store = await open();
      const first = await store.port.put("render", spec("one"), "ann");
      store.clock.advance(5000);
      const second = await store.port.put("render", spec("two"), "ann");
      expect(first).toEqual({
        created: true,
        worker: {
          ...{ name: "render", version: 1, current: true, state: "cold", spec: spec("one") },
          createdAt: "2026-01-31T12:00:00.000Z",
          owner: "ann",
        },
      });
      expect(second.worker).toMatchObject({
        version: 2,
        current: true,
        createdAt: "2026-01-31T12:00:05.000Z",
      });
      await store.reopen();
      expect(await store.port.get("render")).toEqual(second.worker);
      expect(await store.port.get("render", 1)).toEqual({ ...first.worker, current: false });
      expect(await store.port.get("render", 3)).toBeUndefined();
      expect(await store.port.get("other")).toBeUndefined();
    });

    test("put() of what is current changes nothing, whatever the order of its parts", async () => {
      await using store = await open();
      const { worker } = await store.port.put("render", { ...spec("one"), env: { A: "1", B: "2" } }, "ann");
      const same = Object.fromEntries(
        Object.entries(spec("one", { B: "2", A: "1" })).reverse(),
      ) as WorkerSpec;
      expect(await store.port.put("render", same, "ann")).toEqual({ worker, created: false });
      await store.port.put("render", spec("two"), "ann");
      const back = await store.port.put("render", { ...spec("one"), env: { A: "1", B: "2" } }, "ann");
      expect(back).toMatchObject({ created: true, worker: { version: 3 } });
    });

    test("put() by another key makes a version of its own, and setCurrent() leaves each whose it is", async () => {
      await using store = await open();
      const owners = ["", "ann", "bob"];
      for (const owner of owners) {
        const put = () => store.port.put("render", spec("one"), owner);
        expect(await put()).toMatchObject({ created: true, worker: { owner } });
        expect(await put()).toMatchObject({ created: false, worker: { owner } });
      }
      expect(await store.port.setCurrent("render", 2)).toMatchObject({ version: 2, owner: "ann" });
      await store.reopen();
      expect(await store.port.get("render")).toMatchObject({ version: 2, owner: "ann" });
      expect((await store.port.list({ limit: 10 })).items).toMatchObject([{ version: 2, owner: "ann" }]);
      const { items } = await store.port.versions("render", { limit: 10 });
      expect(items.map(({ owner }) => owner)).toEqual(owners.toReversed());
      expect(await store.port.put("render", spec("one"), "bob")).toMatchObject({ worker: { version: 4 } });
    });

    test("setCurrent() goes back to a version, and put() goes on from the last", async () => {
      await using store = await open();
      for (const name of ["one", "two"]) await store.port.put("render", spec(name), "ann");
      expect(await store.port.setCurrent("render", 1)).toMatchObject({ version: 1, current: true });
      expect(await store.port.get("render")).toMatchObject({ version: 1 });
      expect(await store.port.get("render", 2)).toMatchObject({ current: false });
      expect(await store.port.put("render", spec("two"), "ann")).toMatchObject({
        created: true,
        worker: { version: 3 },
      });
      for (const [name, version] of [["render", 9] as const, ["other", 1] as const]) {
        const error = await rejection(store.port.setCurrent(name, version));
        expect(error.code).toBe("WORKER_NOT_FOUND");
      }
    });

    test("remove() takes all versions, and no later one has a number of before", async () => {
      await using store = await open();
      for (const name of ["one", "two"]) await store.port.put("render", spec(name), "ann");
      expect(await store.port.remove("render")).toBe(true);
      expect(await store.port.remove("render")).toBe(false);
      expect(await store.port.get("render")).toBeUndefined();
      expect(await store.port.get("render", 1)).toBeUndefined();
      expect((await store.port.list({ limit: 10 })).items).toEqual([]);
      expect((await store.port.versions("render", { limit: 10 })).items).toEqual([]);
      expect((await rejection(store.port.setCurrent("render", 2))).code).toBe("WORKER_NOT_FOUND");
      await store.reopen();
      expect(await store.port.put("render", spec("two"), "ann")).toMatchObject({
        created: true,
        worker: { version: 3 },
      });
    });

    test("list() has the current versions by name, versions() those of one newest first, in pages", async () => {
      await using store = await open();
      const names = ["a", "b", "b-2", "c", "d"];
      for (const name of names) await store.port.put(name, spec(name), "ann");
      for (const command of ["2", "3", "4"]) await store.port.put("b", spec(command), "ann");
      const all = await itemsOf(2, (query) => store.port.list(query));
      expect(all.map(({ name, version }) => `${name}@${version}`)).toEqual([
        "a@1",
        "b@4",
        "b-2@1",
        "c@1",
        "d@1",
      ]);
      const versions = await itemsOf(3, (query) => store.port.versions("b", query));
      expect(versions.map(({ version, current }) => (current ? version : -version))).toEqual([4, -3, -2, -1]);
      for (const cursor of ["nonsense", "e30"]) {
        expect((await rejection(store.port.list({ cursor, limit: 2 }))).code).toBe("BAD_ARGUMENT");
        expect((await rejection(store.port.versions("b", { cursor, limit: 2 }))).code).toBe("BAD_ARGUMENT");
      }
    });

    test("a page of large workers is complete with the ones after it", async () => {
      await using store = await open();
      const text = "x".repeat(12 * 1024 * 1024);
      const files = [{ path: "/large", text, mode: 0o644 }];
      for (const name of ["a", "b", "c", "d"]) await store.port.put(name, { ...spec(name), files }, "ann");
      const first = await store.port.list({ limit: 100 });
      expect(first.items.length).toBeLessThan(4);
      const all = await itemsOf(100, (query) => store.port.list(query));
      expect(all.map(({ name }) => name)).toEqual(["a", "b", "c", "d"]);
      expect(all[3]!.spec.files[0]!.text).toBe(text);
    });
  });
}

function spec(command: string, env: Record<string, string> = {}): WorkerSpec {
  return WorkerSpec.parse({ image: "base", command: [command], env });
}

async function itemsOf(
  limit: number,
  list: (query: { cursor?: string | undefined; limit: number }) => Promise<Page<StoredWorker>>,
): Promise<StoredWorker[]> {
  const items: StoredWorker[] = [];
  let cursor: string | undefined;
  do {
    const page = await list({ cursor, limit });
    expect(page.items.length).toBeGreaterThan(0);
    expect(page.items.length).toBeLessThanOrEqual(limit);
    items.push(...page.items);
    cursor = page.next;
  } while (cursor !== undefined);
  return items;
}
