import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { hashMemory } from "../../memserver/image/memory-image.ts";
import { processesOf } from "../../runtime/vm/owner.ts";
import { type CliEvent, type CliOptions, type CliResult, eventsOf } from "../support/cli.ts";
import { canLimitRate, canMakeHosts } from "../support/network-hosts.ts";
import {
  CHECK_NOISE,
  commandLineOf,
  dataBytes,
  NOISY,
  type RemoteSite,
  type RemoteSites,
  remoteSites,
  until,
} from "../support/remote-site.ts";
import { SETUP_MS, TEST_MS } from "../support/vm.ts";

setDefaultTimeout(TEST_MS);

// Root, network namespaces, veth pairs and a bridge: without them there is one host only.
describe.skipIf(!canMakeHosts)("flurry run --peer", () => {
  let network: RemoteSites;
  /** Has the parent. */
  let a: RemoteSite;
  let b: RemoteSite;
  let c: RemoteSite;

  beforeAll(async () => {
    network = await remoteSites(3);
    [a, b, c] = network.sites as [RemoteSite, RemoteSite, RemoteSite];
    // Lazily, so that it knows what a child needs first.
    const made = await a.flurry(runArgs(["--lazy"], "uname -n"));
    expect(details(made).at(-1)).toMatch(/^Parent: booted in /);
  }, SETUP_MS);

  afterAll(async () => {
    const left = network.sites.flatMap((site) => site.leftovers());
    await network[Symbol.asyncDispose]();
    expect(left).toEqual([]);
  }, SETUP_MS);

  test("forks what the other host has frozen, fetches each page once, and then has it itself", async () => {
    await using memserver = await a.memserver();
    const [parent] = a.parents();
    const before = await a.traffic();
    const run = b.start(
      runArgs(
        ["--peer", memserver.address, "--count", "4", "--children", "4"],
        `${CHECK_NOISE}; sleep 100000`,
      ),
    );
    const own = await until(() => b.parents()[0], "the parent has arrived");
    await run.until(/(?:"event":"stdout".*\n[\s\S]*){8}/);
    const crossed = (await a.traffic()).sent - before.sent;
    expect(processesOf(b.sandbox.run).length).toBeGreaterThanOrEqual(4);
    run.kill("SIGINT");
    const result = await run.ended;
    expect(result.status).toBe(130);
    expect(details(result)).toEqual([
      `asking other hosts for it: ${memserver.address}`,
      `opening the frozen parent of ${memserver.address}`,
      expect.stringContaining(`Parent: frozen by ${memserver.address}, its memory comes as it is needed`),
    ]);
    expectSums(result, 4);
    expect(b.leftovers()).toEqual([]);

    const bytes = dataBytes(parent!);
    expect(crossed).toBeGreaterThan(bytes / 4);
    expect(crossed).toBeLessThan(bytes * 1.25);
    expect(own.hash).toBe(parent!.hash);
    expect(await hashMemory(own.memory)).toBe(await hashMemory(parent!.memory));
    for (const name of ["descriptor", "pages"]) {
      expect(readFileSync(join(own.dir, name)).equals(readFileSync(join(parent!.dir, name)))).toBe(true);
    }

    expect(await memserver.stop()).toBe(0);
    const alone = await a.traffic();
    const again = b.start(runArgs(["--peer", memserver.address], `${CHECK_NOISE}; sleep 100000`));
    await again.until(/(?:"event":"stdout".*\n[\s\S]*){2}/);
    expect(mapped(b)).toEqual([own.memory]);
    again.kill("SIGINT");
    const second = await again.ended;
    expect(details(second)).toEqual([
      "opening the frozen parent",
      expect.stringMatching(/^Parent: frozen earlier, taken from disk without a boot /),
    ]);
    expectSums(second, 1);
    expect((await a.traffic()).sent - alone.sent).toBeLessThan(10_000);
    expect(b.leftovers()).toEqual([]);
  });

  test.skipIf(!canLimitRate)(
    "has a child answer long before its memory can have crossed the network",
    async () => {
      await using memserver = await a.memserver();
      c.forgetParents();
      await c.host.link.rate(64);
      const before = await c.traffic();
      const run = c.start(runArgs(["--peer", memserver.address], "uname -n; sleep 100000"));
      await run.until(/asking other hosts/);
      const began = performance.now();
      await run.until(/"event":"stdout"/);
      const answered = {
        ms: performance.now() - began,
        bytes: (await c.traffic()).received - before.received,
      };
      await until(() => c.parents()[0], "the parent has arrived");
      const arrived = {
        ms: performance.now() - began,
        bytes: (await c.traffic()).received - before.received,
      };
      await c.host.link.rate(undefined);
      run.kill("SIGINT");
      expect((await run.ended).status).toBe(130);
      expect(answered.bytes / arrived.bytes).toBeLessThan(0.5);
      expect(answered.ms / arrived.ms).toBeLessThan(0.5);
    },
  );

  test("boots a parent when nobody that it can ask has it, and says why", async () => {
    await using memserver = await a.memserver();
    const boot = async (site: RemoteSite, peers: string[], options: CliOptions = {}) => {
      site.forgetParents();
      const args = peers.flatMap((peer) => ["--peer", peer]);
      // Of another size than the one that the other host has.
      const parent = ["--image", "base", "--memory", "128"];
      const result = await site.flurry(runArgs(args, "uname -n", parent), options);
      expect(result.status).toBe(0);
      expect(eventsOf(result).find(({ event }) => event === "stdout")?.line).toBe("base-0");
      const [asked, ...rest] = details(result);
      expect(asked).toBe(`asking other hosts for it: ${peers.join(", ")}`);
      expect(rest.at(-1)).toMatch(/^Parent: booted in /);
      expect(site.parents()).toHaveLength(1);
      expect(site.leftovers()).toEqual([]);
      return rest.find((text) => text.startsWith("cannot use another host's parent: "));
    };
    const stranger = { env: { FLURRY_KEYS: network.otherKeys } };
    const nobody = [`${a.host.address}:1`, "10.99.0.200:7400"];
    const sent = (await a.traffic()).sent;
    const [refused, unreachable] = await Promise.all([
      boot(b, [memserver.address], stranger),
      boot(c, nobody),
    ]);
    expect(refused).toContain(memserver.address);
    expect(unreachable).toContain(nobody[0]);
    // Whoever may ask is told that there is none.
    expect(await boot(b, [memserver.address])).toBeUndefined();
    expect((await a.traffic()).sent - sent).toBeLessThan(100_000);
  });
});

function runArgs(options: string[], script: string, parent = NOISY): string[] {
  return ["run", ...parent, "--json", ...options, "--", "sh", "-c", script];
}

/** What a command told of its parent, without what a booting guest says. */
function details(result: CliResult): string[] {
  return eventsOf(result)
    .filter(({ event, label, detail }) => event === "progress" && label === "Parent" && detail !== undefined)
    .map(({ detail }) => String(detail))
    .filter((detail) => !detail.startsWith("booting: "));
}

/** Each of so many tasks is to have read the right bytes. */
function expectSums(result: CliResult, count: number): void {
  const lines = eventsOf(result).filter((event) => event.event === "stdout");
  const byTask = Map.groupBy(lines, ({ task }) => task);
  expect(byTask.size).toBe(count);
  const texts = [...byTask.values()].flatMap((events: CliEvent[]) => [events.map(({ line }) => line)]);
  for (const [sum, expected] of texts) {
    expect(sum).toMatch(/^[0-9a-f]{64} /);
    expect(sum).toBe(expected);
  }
}

/** The files of parents that VMs of a host have for their memory. */
function mapped(site: RemoteSite): string[] {
  const words = processesOf(site.sandbox.run).flatMap(commandLineOf);
  const files = words.flatMap((word) => /mem-path=([^,]*\/memory)(?:,|$)/.exec(word)?.[1] ?? []);
  return [...new Set(files)];
}
