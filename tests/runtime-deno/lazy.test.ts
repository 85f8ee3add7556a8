import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { readlinkSync } from "node:fs";
import { join } from "node:path";
import { Memserver } from "../../runtime/fork/memserver.ts";
import type { Parent } from "../../runtime/fork/parent.ts";
import { memserverKeys } from "../../runtime/home.ts";
import { Host } from "../../runtime/vm/host.ts";
import { CliSandbox, root, sortedLines } from "../support/cli.ts";
import { SUM_RIGHT, sum } from "../support/memserver-lazy.ts";
import { checkedOptions } from "../support/remote-forks.ts";
import { commandLineOf, memserversOf, until } from "../support/remote-site.ts";
import { baseParent, NO_TRACES, tracesOf } from "../support/vm.ts";

/** The command line on the runtime that runs this test: Deno, in the layer that is called after it. */
const flags = process.versions.deno === undefined ? [] : ["--allow-all"];
const program = [process.execPath, "run", ...flags, join(root, "runtime/cli/main.ts")];

describe("the libraries", () => {
  let host: Host;
  let memserver: Memserver;
  let parent: Parent;

  beforeAll(async () => {
    host = await Host.open();
    memserver = new Memserver({ host, keys: memserverKeys(host.home) });
    parent = await baseParent(host, { ...(await checkedOptions()), memory: "lazy", memserver });
  }, 900_000);

  afterAll(async () => {
    await parent[Symbol.asyncDispose]();
    await memserver[Symbol.asyncDispose]();
    expect(tracesOf(host)).toEqual(NO_TRACES);
    await host[Symbol.asyncDispose]();
  }, 60_000);

  test("give children their memory page by page, by a memserver on this runtime", async () => {
    expectHere((await memserver.pid())!);
    await using child = await parent.fork({ identity: { index: 0, hostname: "lazy" } });
    expect(await sum(child)).toEqual(SUM_RIGHT);
    const { requests, pushed } = await memserver.stats(child.id);
    expect(requests + pushed).toBeGreaterThan(SUM_RIGHT.pages);
  }, 120_000);

  test("start another memserver when it is killed, for a child that goes on", async () => {
    await using child = await parent.fork({ identity: { index: 0, hostname: "survivor" } });
    const summing = sum(child);
    process.kill((await memserver.pid())!, "SIGKILL");
    expect(await summing).toEqual(SUM_RIGHT);
    expect(memserver.starts).toBe(2);
  }, 120_000);
});

describe("flurry run --lazy", () => {
  test("runs tasks whose memory comes page by page, by a memserver on this runtime", async () => {
    await using sandbox = new CliSandbox();
    const script = "echo task $FLURRY_TASK_INDEX; sleep 1";
    const run = sandbox.start(
      ["run", "--image", "base", "--lazy", "--count", "2", "--", "sh", "-c", script],
      { program },
    );
    const pid = await until(() => memserversOf(sandbox.run)[0], "there is a memserver");
    expectHere(pid);
    const { status, stdout } = await run.ended;
    expect(status).toBe(0);
    expect(sortedLines(stdout)).toEqual(["[0] task 0", "[1] task 1"]);
    expect(sandbox.leftovers()).toEqual([]);
  }, 300_000);
});

/** A memserver is to run on the runtime that runs this test. */
function expectHere(pid: number): void {
  const argv = commandLineOf(pid);
  expect([argv[0], argv.includes(join(root, "memserver/main.ts"))]).toEqual([process.execPath, true]);
  expect(readlinkSync(`/proc/${pid}/exe`)).toBe(readlinkSync("/proc/self/exe"));
}
