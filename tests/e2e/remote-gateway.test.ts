import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { type CliResult, eventsOf } from "../support/cli.ts";
import { canLimitRate } from "../support/network-hosts.ts";
import {
  CHECK_NOISE,
  dataBytes,
  memserversOf,
  NOISY,
  type RemoteSite,
  type RemoteSites,
  remoteSites,
  until,
} from "../support/remote-site.ts";
import { SETUP_MS, TEST_MS } from "../support/vm.ts";

setDefaultTimeout(TEST_MS);

// Root, network namespaces, veth pairs, a bridge and tbf: without them there is one host only, or no time
// for anything to happen while memory crosses.
describe.skipIf(!canLimitRate)("flurry serve --peer", () => {
  let network: RemoteSites;
  /** Has the parent. */
  let a: RemoteSite;
  let b: RemoteSite;
  let c: RemoteSite;

  beforeAll(async () => {
    network = await remoteSites(3);
    [a, b, c] = network.sites as [RemoteSite, RemoteSite, RemoteSite];
    // Lazily, so that it knows what a child needs first.
    const made = await a.flurry(["run", "--lazy", ...NOISY, "--", "uname", "-n"]);
    expect(made.status).toBe(0);
  }, SETUP_MS);

  afterAll(async () => {
    const left = network.sites.flatMap((site) => site.leftovers());
    await network[Symbol.asyncDispose]();
    expect(left).toEqual([]);
  }, SETUP_MS);

  test("has workers of one parent share what comes, also from a memserver that is killed meanwhile", async () => {
    await using other = await gateway(a, ["--memserver", `${a.host.address}:0`]);
    await using own = await gateway(b, ["--peer", other.pages!]);
    await b.host.link.rate(128);
    const before = await a.traffic();
    // Their children have their memory in different ways.
    const jobs = Promise.all([own.job([]), own.job(["--lazy"])]);
    await until(async () => (await a.traffic()).sent > before.sent + 4_000_000, "some of it has crossed");
    process.kill(memserversOf(a.sandbox.run)[0]!, "SIGKILL");
    const [mapped, lazy] = await jobs;
    await b.host.link.rate(undefined);
    await until(() => b.unfinished().length === 0, "the parent has arrived");
    const [parent] = a.parents();
    expect([...outputs(mapped), ...outputs(lazy)]).toEqual(Array(4).fill(outputs(mapped)[0]));
    expect(b.parents().map(({ hash }) => hash)).toEqual([parent!.hash]);
    expect((await a.traffic()).sent - before.sent).toBeLessThan(dataBytes(parent!) * 1.25);
    expect([await own.stop(), await other.stop()]).toEqual([0, 0]);
    expect(b.leftovers()).toEqual([]);
  });

  test("makes a parent here when the other host is lost with the memory, and loses no task", async () => {
    await using memserver = await a.memserver();
    b.forgetParents();
    await using own = await gateway(b, ["--peer", memserver.address]);
    await Promise.all([b.host.link.rate(24), c.host.link.rate(24)]);
    const before = (await b.traffic()).received;
    const running = own.job([]);
    const run = c.start([
      "run",
      ...NOISY,
      "--peer",
      memserver.address,
      "--json",
      "--",
      "sh",
      "-c",
      CHECK_NOISE,
    ]);
    await run.until(/"event":"started"/);
    await until(async () => (await b.traffic()).received > before + 4_000_000, "some of it has crossed");
    await memserver.kill();
    const alone = await run.ended;
    expect(alone.status).toBe(4);
    const failed = eventsOf(alone).find(({ event }) => event === "ended");
    expect(failed).toMatchObject({ state: "failed", error: { code: "CHILD_DIED" } });
    const died = `was killed: its memory cannot be had: Cannot get page`;
    expect(JSON.stringify(failed?.error)).toContain(died);
    expect(JSON.stringify(failed?.error)).toContain(memserver.address);
    expect(c.leftovers()).toEqual([]);
    expect(c.parents()).toEqual([]);

    const result = await running;
    expect(new Set(outputs(result)).size).toBe(1);
    expect(b.parents()).toHaveLength(1);
    expect(b.parents()[0]!.hash).not.toBe(a.parents()[0]!.hash);
    expect(await own.stop()).toBe(0);
    expect(b.leftovers()).toEqual([]);
  });
});

/** `flurry serve` for two VMs at a time. */
async function gateway(site: RemoteSite, options: string[]) {
  const run = site.start([
    ...["serve", "--listen", "127.0.0.1:0", "--data", "data", "--children", "2", "--json"],
    ...options,
  ]);
  const [, url] = await run.until(/"event":"ready","url":"([^"]+)"/);
  const [, host, port] = options.includes("--memserver")
    ? await run.until(/"event":"memserver","hostname":"([^"]+)","port":(\d+)/)
    : [];
  return {
    run,
    pages: host && `${host}:${port}`,
    /** A job of two tasks that check the noise, and its results. */
    job: (more: string[]) =>
      site.flurry([
        ...["job", "submit", "--url", url!, ...NOISY, ...more, "--count", "2", "--wait", "--json"],
        ...["--", "sh", "-c", CHECK_NOISE],
      ]),
    stop: async () => {
      run.kill("SIGTERM");
      return (await run.ended).status;
    },
    [Symbol.asyncDispose]: async () => {
      run.kill("SIGKILL");
      await run.ended;
    },
  };
}

/** What the tasks of a job printed, each of which is to have succeeded at its first attempt, with the right bytes. */
function outputs(job: CliResult): string[] {
  expect([job.status, job.stderr]).toEqual([0, ""]);
  const results = eventsOf(job).filter(({ event }) => event === "result");
  expect(results.map(({ index }) => index).sort()).toEqual([0, 1]);
  return results.map(({ attempt, state, stdout }) => {
    const [sum, expected] = String(stdout).split("\n");
    expect({ attempt, state, sum }).toEqual({ attempt: 1, state: "succeeded", sum: expected! });
    return String(stdout);
  });
}
