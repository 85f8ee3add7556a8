import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { symlinkSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as wait } from "node:timers/promises";
import { PAGE_BYTES } from "../../memserver/stream/format.ts";
import { canLimitRate } from "../support/network-hosts.ts";
import { RemoteForks } from "../support/remote-forks.ts";
import {
  dataBytes,
  type RemoteMemserver,
  type RemoteSite,
  type RemoteSites,
  remoteSites,
  until,
} from "../support/remote-site.ts";
import { canMount, SETUP_MS, smallTmpfs, TEST_MS } from "../support/vm.ts";

setDefaultTimeout(TEST_MS);

// Root, network namespaces, veth pairs, a bridge and tbf: without them there is one host only, or no time
// for anything to happen while memory crosses.
describe.skipIf(!canLimitRate)("children whose memory another host has", () => {
  let network: RemoteSites;
  /** Has the parent. */
  let a: RemoteSite;
  let b: RemoteSite;
  let dataPages: number;

  beforeAll(async () => {
    network = await remoteSites(3);
    [a, b] = network.sites as [RemoteSite, RemoteSite];
    await using forks = new RemoteForks(a);
    expect((await forks.ask("open", { peers: [], memory: "lazy" })).steps).toContain("boot");
    // Shows what a child needs first.
    await forks.ask("fork", { child: "first" });
    await forks.ask("end", { child: "first" });
    dataPages = dataBytes(a.parents()[0]!) / PAGE_BYTES;
  }, SETUP_MS);

  afterAll(async () => {
    const left = network.sites.flatMap((site) => site.leftovers());
    await network[Symbol.asyncDispose]();
    expect(left).toEqual([]);
  }, SETUP_MS);

  test("have each page brought once for all of them, as it was frozen, whatever is written elsewhere", async () => {
    await using there = new RemoteForks(a);
    const { address } = await there.ask("serve", { host: a.host.address });
    await there.ask("open", { peers: [] });
    await using here = new RemoteForks(b);
    expect((await here.ask("open", { peers: [address] })).steps).toEqual(["ask", "remote"]);
    const names = ["one", "two", "three"];
    const writes = there
      .ask("fork", { child: "writer" })
      .then(() =>
        there.run(
          "writer",
          "echo written > /run/state; head -c 33554432 /dev/urandom > /run/trace; md5sum < /run/trace",
        ),
      );
    await Promise.all(names.map((child) => here.ask("fork", { child })));
    await Promise.all(names.map((child) => here.check(child)));
    await writes;
    for (const child of names)
      expect(await here.run(child, "cat /run/state; ls /run/trace 2>&1 || :")).toMatch(
        /^frozen\n.*No such file/,
      );
    await until(async () => !(await here.ask("state", {})).lazy, "the parent has arrived");
    expect((await there.ask("served", {})).pages).toBe(dataPages);
    await Promise.all(names.map((child) => here.check(child)));
    await here.ask("fork", { child: "mapped" });
    await here.check("mapped");
    expect(await there.run("writer", "cat /run/state")).toBe("written\n");
  });

  /** A child of a host that has a slow link and nothing of the parent yet; some of that has come then. */
  async function beginsOn(site: RemoteSite, here: RemoteForks, peers: string[]): Promise<void> {
    site.forgetParents();
    await site.host.link.rate(24);
    await here.ask("open", { peers });
    await here.ask("fork", { child: "child" });
    const { received } = await site.traffic();
    await until(async () => (await site.traffic()).received > received + 3_000_000, "some of it has come");
    expect((await here.ask("state", {})).lazy).toBe(true);
  }

  /** Waits until all of it is here, which a link without a limit makes soon. */
  async function arrivesAt(site: RemoteSite, here: RemoteForks): Promise<void> {
    await site.host.link.rate(undefined);
    await until(async () => !(await here.ask("state", {})).lazy, "the parent has arrived");
    expect(site.unfinished()).toEqual([]);
    expect(site.parents().map(({ hash }) => hash)).toEqual(a.parents().map(({ hash }) => hash));
  }

  test("stand still while the link is cut, and go on when it is back", async () => {
    await using memserver = await a.memserver();
    await using here = new RemoteForks(b);
    await beginsOn(b, here, [memserver.address]);
    let checked = false;
    const check = here.check("child").then(() => {
      checked = true;
    });
    {
      await using _cut = await cut(b);
      const before = await b.traffic();
      await wait(2000);
      expect(checked).toBe(false);
      // What was in the queues of the link may have come still.
      expect((await b.traffic()).received - before.received).toBeLessThan(1_000_000);
    }
    await arrivesAt(b, here);
    await check;
    expect(await here.ask("state", {})).toMatchObject({ starts: 1 });
  });

  for (const [how, lose] of [
    ["is killed", async (memserver: RemoteMemserver) => memserver.kill().then(() => memserver)],
    ["vanishes without a word", () => cut(a)],
  ] as const) {
    test(`have the rest from another host that has it when theirs ${how}`, async () => {
      const c = network.sites[2]!;
      await using first = await a.memserver();
      await using second = await c.memserver(a.home);
      await using here = new RemoteForks(b);
      await beginsOn(b, here, [first.address, second.address]);
      const before = await c.traffic();
      const check = here.check("child");
      await using _lost = await lose(first);
      await arrivesAt(b, here);
      await check;
      expect((await c.traffic()).sent - before.sent).toBeGreaterThan(1_000_000);
    });
  }

  test("outlive their own host's memserver, of whose pages none is brought again", async () => {
    await using there = new RemoteForks(a);
    const { address } = await there.ask("serve", { host: a.host.address });
    await using here = new RemoteForks(b);
    await beginsOn(b, here, [address]);
    const check = here.check("child");
    const { pages } = await there.ask("served", {});
    process.kill((await here.ask("state", {})).memserver!, "SIGKILL");
    await until(async () => (await here.ask("state", {})).starts === 2, "another memserver has begun");
    await arrivesAt(b, here);
    await check;
    const again = (await there.ask("served", {})).pages - dataPages;
    // What was on its way.
    expect(again).toBeLessThan(pages / 2);
  });

  test.skipIf(!canMount)("go on when there is no room for their memory on this host's disk", async () => {
    await using there = new RemoteForks(a);
    const { address } = await there.ask("serve", { host: a.host.address });
    using _room = littleRoom(b, 20 * 1024);
    {
      await using here = new RemoteForks(b);
      await here.ask("open", { peers: [address] });
      await Promise.all(["one", "two"].map((child) => here.ask("fork", { child })));
      await Promise.all(["one", "two"].map((child) => here.check(child)));
      expect(await here.ask("state", {})).toMatchObject({ lazy: true, starts: 1 });
      expect((await there.ask("served", {})).pages).toBeGreaterThan(20 * 256);
    }
    expect(b.leftovers()).toEqual([]);
  });
});

/** Has a site keep its parents where there is little room. */
function littleRoom(site: RemoteSite, kibibytes: number): Disposable {
  using stack = new DisposableStack();
  const { path } = stack.use(smallTmpfs(kibibytes));
  site.forgetParents();
  symlinkSync(path, join(site.home, "parents"));
  stack.defer(() => site.forgetParents());
  const owned = stack.move();
  return { [Symbol.dispose]: () => owned.dispose() };
}

/** Cuts the link of a host until this is disposed. */
async function cut({ host }: RemoteSite): Promise<AsyncDisposable> {
  await host.link.down();
  return { [Symbol.asyncDispose]: () => host.link.up() };
}
