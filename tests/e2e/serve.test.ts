import { describe, expect, test } from "bun:test";
import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { type CliOptions, CliSandbox, eventsOf, root } from "../support/cli.ts";

const deno: CliOptions = {
  program: [
    join(root, "node_modules/deno/deno"),
    "run",
    "-A",
    "--no-check",
    join(root, "runtime/cli/main.ts"),
  ],
};

// Unpacks Deno where that has not been done. It is started itself: its wrapper passes no signal on.
spawnSync(process.execPath, [join(root, "node_modules/deno/bin.cjs"), "--version"]);

describe("flurry serve", () => {
  for (const [runtime, options] of [
    ["Bun", {}],
    ["Deno", deno],
  ] as const) {
    test(`answers on ${runtime} until it is told to end, and leaves nothing behind`, async () => {
      await using sandbox = new CliSandbox();
      const args = ["serve", "--listen", "127.0.0.1:0", "--data", "data", "--json"];
      const run = sandbox.start(args, options);
      const [line = ""] = await run.until(/^\{"event":"ready".*\}$/m);
      const { url, docs } = JSON.parse(line);
      expect(await (await fetch(`${url}/healthz`)).json()).toEqual({ status: "ok" });
      expect((await fetch(`${url}/readyz`)).status).toBe(200);
      expect(await (await fetch(docs)).text()).toContain("swagger-ui-bundle.js");
      // A second one on the same data is refused while the first goes on.
      const second = await sandbox.flurry(args, options);
      expect([second.status, eventsOf(second).at(-1)?.code]).toEqual([5, "DATA_IN_USE"]);
      run.kill("SIGTERM");
      const { status, stdout } = await run.ended;
      expect([status, stdout.includes('"event":"ending"')]).toEqual([0, true]);
      expect(sandbox.leftovers()).toEqual([]);
    });
  }

  test("shows each default once in its help", async () => {
    await using sandbox = new CliSandbox();
    const { stdout } = await sandbox.flurry(["serve", "--help"]);
    const help = stdout.replace(/\s+/g, " ");
    expect(help).toContain("port 0 for any that is free (default: 127.0.0.1:8787) --data");
    expect(help).toMatch(/although they are not public --log-level/);
  });

  test("says what it cannot listen on", async () => {
    await using sandbox = new CliSandbox();
    const listen = async (address: string) => {
      const result = await sandbox.flurry(["serve", "--listen", address, "--data", "data", "--json"]);
      return [result.status, eventsOf(result).at(-1)?.code];
    };
    for (const address of ["8787", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", ":1", "[::1:1"]) {
      expect([address, ...(await listen(address))]).toEqual([address, 2, "BAD_ARGUMENT"]);
    }
    expect(await listen("0.0.0.0:0")).toEqual([2, "KEYS_REQUIRED"]);
  });
});
