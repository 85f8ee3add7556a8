import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { Generation } from "../../runtime/fork/generation.ts";
import { freezeLive } from "../../runtime/fork/live-freeze.ts";
import type { Parent } from "../../runtime/fork/parent.ts";
import { Host } from "../../runtime/vm/host.ts";
import { CliSandbox, eventsOf, root, sortedLines } from "../support/cli.ts";
import { baseParent, NO_TRACES, tracesOf } from "../support/vm.ts";

/** The command line on the runtime that runs this test: Deno, in the layer that is called after it. */
const flags = process.versions.deno === undefined ? [] : ["--allow-all"];
const program = [process.execPath, "run", ...flags, join(root, "runtime/cli/main.ts")];

describe("the libraries", () => {
  let host: Host;
  let parent: Parent;

  beforeAll(async () => {
    host = await Host.open();
    parent = await baseParent(host);
  }, 900_000);

  afterAll(async () => {
    await parent[Symbol.asyncDispose]();
    expect(tracesOf(host)).toEqual(NO_TRACES);
    await host[Symbol.asyncDispose]();
  }, 60_000);

  test("fork a parent, and run programs in its children", async () => {
    const identities = [0, 1, 2].map((index) => ({ index, hostname: `child-${index}` }));
    const children = await Promise.all(identities.map((identity) => parent.fork({ identity })));
    try {
      await Promise.all(children.map((child) => child.agent.putFile("/tmp/mine", child.identity.hostname)));
      const script = "cat /tmp/mine; uname -n >&2; exit $1";
      const results = await Promise.all(
        children.map((child) =>
          child.agent.run(["/bin/sh", "-c", script, "sh", String(child.identity.index)]),
        ),
      );
      for (const [index, result] of results.entries()) {
        const expected = { code: index, stdout: `child-${index}`, stderr: `child-${index}\n` };
        expect(result).toMatchObject(expected);
      }
    } finally {
      await Promise.all(children.map((child) => child[Symbol.asyncDispose]()));
    }
  }, 120_000);

  test("fork a child that goes on, with the program that runs in it", async () => {
    await using child = await parent.fork({ identity: { index: 0, hostname: "goes-on" } });
    const counting = "i=0; while [ ! -e /tmp/enough ]; do i=$((i+1)); echo $i; done; echo last";
    const program = await child.agent.exec(["/bin/sh", "-c", `echo once > /tmp/f; ${counting}`]);
    const all = new Response(program.stdout).text();
    await using generation = await Generation.of(child, await freezeLive(child));
    await using grandchild = await generation.fork({ identity: { index: 1, hostname: "fork" } });
    const [inherited] = grandchild.inherited;
    const going = new Response(inherited!.stdout).text();
    expect((await grandchild.agent.run(["/bin/cat", "/tmp/f"])).stdout).toBe("once\n");
    await grandchild.agent.putFile("/tmp/enough", "");
    expect(await inherited!.exited).toEqual({ code: 0 });
    await child.agent.putFile("/tmp/enough", "");
    expect(await program.exited).toEqual({ code: 0 });
    const numbers = (text: string) => text.split("\n").slice(0, -2).map(Number);
    const [whole, rest] = [numbers(await all), numbers(await going)];
    expect(whole).toEqual(whole.map((_, at) => at + 1));
    expect(rest).toEqual(rest.map((_, at) => rest[0]! + at));
  }, 120_000);

  test("carry a stream of many bytes in and out of a child", async () => {
    await using child = await parent.fork({ identity: { index: 0, hostname: "bytes" } });
    const bytes = Uint8Array.from({ length: 2_000_003 }, (_value, at) => (at * 31) % 251);
    await child.agent.putFile("/tmp/bytes", bytes);
    const process = await child.agent.exec(["/bin/cat", "/tmp/bytes"]);
    const chunks: Uint8Array[] = [];
    for await (const chunk of process.stdout) chunks.push(chunk);
    expect(await process.exited).toEqual({ code: 0 });
    expect(Buffer.compare(Buffer.concat(chunks), bytes)).toBe(0);
  }, 120_000);

  test("notice at once that a child's process is killed", async () => {
    await using child = await parent.fork({ identity: { index: 0, hostname: "victim" } });
    const running = child.agent.run(["/bin/sleep", "1000000"]);
    process.kill(child.pid, "SIGKILL");
    const error = await running.then(
      () => undefined,
      (reason: unknown) => child.explain(reason),
    );
    expect(error).toMatchObject({ code: "CHILD_DIED" });
  }, 120_000);
});

describe("flurry run", () => {
  let sandbox: CliSandbox;

  beforeAll(() => {
    sandbox = new CliSandbox();
  });

  afterAll(async () => {
    await sandbox[Symbol.asyncDispose]();
  }, 60_000);

  test("boots a parent, freezes it, and runs tasks in its children", async () => {
    const out = join(sandbox.directory, "out");
    const script = "echo task $FLURRY_TASK_INDEX; echo $FLURRY_TASK_INDEX > /out/index";
    const args = [
      "run",
      "--image",
      "base",
      "--fresh",
      "--count",
      "3",
      "--out",
      out,
      "--",
      "sh",
      "-c",
      script,
    ];
    const { status, stdout, stderr } = await sandbox.flurry(args, { program });
    expect(stderr).toMatch(/^Parent: booted in /m);
    expect(status).toBe(0);
    expect(sortedLines(stdout)).toEqual(["[0] task 0", "[1] task 1", "[2] task 2"]);
    for (const index of ["0", "1", "2"]) {
      expect(readFileSync(join(out, index, "index"), "utf8")).toBe(`${index}\n`);
    }
    expect(sandbox.leftovers()).toEqual([]);
  }, 300_000);

  test("ends with 4 when a task fails, and with 2 for an image that is not there", async () => {
    const args = ["run", "--image", "base", "--count", "2", "--json", "--", "sh", "-c"];
    const failed = await sandbox.flurry([...args, "exit $FLURRY_TASK_INDEX"], { program });
    expect(failed.status).toBe(4);
    expect(eventsOf(failed).at(-1)).toMatchObject({ event: "done", succeeded: 1, failed: 1 });
    const unknown = await sandbox.flurry(["run", "--image", "no-such", "--", "true"], { program });
    expect(unknown.status).toBe(2);
    expect(unknown.stderr).toContain("code: IMAGE_NOT_FOUND");
  }, 120_000);

  test("ends with 130 when it is interrupted, and leaves nothing", async () => {
    const args = ["run", "--image", "base", "--", "sh", "-c", "echo ready; exec sleep 1000000"];
    const run = sandbox.start(args, { program });
    await run.until(/\[0\] ready/);
    run.kill("SIGINT");
    expect((await run.ended).status).toBe(130);
    expect(sandbox.leftovers()).toEqual([]);
  }, 120_000);
});
