import { describe, expect, test } from "bun:test";
import type { SetAside } from "../../runtime/api/mod.ts";
import type { HostRegistry } from "../../runtime/jobs/ports.ts";
import type { OpenPort } from "./store-port.ts";

const NOON = "2026-01-31T12:00:00.000Z";
const HOST = { id: "h1", name: "alpha", accel: "tcg", cores: 2, memoryBytes: 6 * 2 ** 30, slots: 2 };
const UP = { ...HOST, running: 0, state: "up" as const, setAside: [], startedAt: NOON, seenAt: NOON };

/** What every HostRegistry does. */
export function hostRegistryConformance(open: OpenPort<HostRegistry>): void {
  describe("a HostRegistry", () => {
    test("list() has what hosts have said of themselves last", async () => {
      await using store = await open();
      await store.port.register(HOST);
      const { accel: _, ...unknown } = HOST;
      await store.port.register({ ...unknown, id: "h0" });
      const { accel: __, ...rest } = UP;
      expect(await store.port.list()).toEqual([{ ...rest, id: "h0" }, UP]);
      store.clock.advance(1000);
      await store.port.heartbeat("h1", 2);
      await store.port.heartbeat("never", 2);
      expect((await store.port.list())[1]).toEqual({ ...UP, running: 2, seenAt: "2026-01-31T12:00:01.000Z" });
      await store.port.leave("h1");
      expect((await store.port.list())[1]).toMatchObject({ id: "h1", state: "down", running: 0 });
    });

    test("a host that comes again begins anew", async () => {
      await using store = await open();
      await store.port.register(HOST);
      await store.port.setAside("h1", aside("host", "h1"));
      await store.port.heartbeat("h1", 2);
      store.clock.advance(1000);
      await store.port.register({ ...HOST, slots: 4 });
      const at = "2026-01-31T12:00:01.000Z";
      expect(await store.port.list()).toEqual([{ ...UP, slots: 4, startedAt: at, seenAt: at }]);
    });

    test("what is set aside shows until it is restored; a host that is set aside is not up", async () => {
      await using store = await open();
      await store.port.register(HOST);
      await store.port.setAside("h1", aside("worker", "family"));
      expect(await store.port.list()).toEqual([{ ...UP, setAside: [aside("worker", "family")] }]);
      await store.port.setAside("h1", aside("host", "h1"));
      await store.port.setAside("h1", { ...aside("worker", "family"), failures: 6 });
      const [entry] = await store.port.list();
      expect(entry!.state).toBe("set-aside");
      expect(entry!.setAside.map(({ kind, failures }) => [kind, failures])).toEqual([
        ["host", 5],
        ["worker", 6],
      ]);
      await store.port.restore("h1", "host", "h1");
      await store.port.restore("h1", "worker", "another");
      expect((await store.port.list())[0]).toMatchObject({ state: "up", setAside: [{ id: "family" }] });
      await store.port.setAside("never", aside("host", "never"));
      expect(await store.port.list()).toHaveLength(1);
    });

    test("hosts of before a restart are down, with nothing set aside, until they come again", async () => {
      await using store = await open();
      await store.port.register(HOST);
      await store.port.setAside("h1", aside("worker", "family"));
      await store.port.heartbeat("h1", 1);
      await store.reopen();
      expect(await store.port.list()).toEqual([{ ...UP, state: "down" }]);
      await store.port.register(HOST);
      expect(await store.port.list()).toEqual([UP]);
    });
  });
}

function aside(kind: SetAside["kind"], id: string): SetAside {
  return { kind, id, label: `${kind} ${id}`, reason: "It fails", failures: 5, since: NOON, nextTryAt: NOON };
}
