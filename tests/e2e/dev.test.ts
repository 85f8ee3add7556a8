import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { createHash } from "node:crypto";
import { symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type CliRun, CliSandbox, root } from "../support/cli.ts";
import { OutboundSite } from "../support/outbound-site.ts";
import { eventually } from "../support/worker-process.ts";

setDefaultTimeout(300_000);

let sandbox: CliSandbox;

beforeAll(() => {
  sandbox = new CliSandbox();
  // As in a project of its own.
  symlinkSync(join(root, "node_modules"), join(sandbox.directory, "node_modules"));
});

afterAll(async () => {
  expect(sandbox.leftovers()).toEqual([]);
  await sandbox[Symbol.asyncDispose]();
});

/** A Hono app that nothing of Flurry is in. */
function writeWorker(greeting: string): void {
  writeFileSync(
    join(sandbox.directory, "worker.ts"),
    `import { Hono } from "hono";
    let asked = 0;
    const app = new Hono();
    app.get("/", (c) => {
      console.log("asked for the greeting");
      return c.text("${greeting} " + ++asked);
    });
    app.get("/name", (c) => c.json({ name: (c.env as { NAME?: string }).NAME ?? null }));
    app.get("/boom", () => {
      throw new Error("it went wrong");
    });
    app.post("/echo", async (c) => c.body(await c.req.arrayBuffer()));
    export default Object.assign(app, {
      scheduled({ cron }: { cron: string }) {
        if (cron === "boom") throw new Error("it went wrong at night");
        console.log("called for", cron, ++asked);
      },
    });`,
  );
}

async function started(args: readonly string[]): Promise<{ run: CliRun; url: string }> {
  const run = sandbox.start(["dev", "worker.ts", "--listen", "127.0.0.1:0", "--json", ...args]);
  const [line = ""] = await run.until(/^\{"event":"ready".*\}$/m);
  return { run, url: JSON.parse(line).url };
}

async function ended(run: CliRun): Promise<void> {
  run.kill("SIGTERM");
  expect((await run.ended).status).toBe(0);
  expect(sandbox.leftovers()).toEqual([]);
}

async function textOf(url: string, init?: RequestInit): Promise<string> {
  return await (await fetch(url, init)).text();
}

describe("flurry dev", () => {
  test("answers each request with a fork of its own, and loads the worker anew when it changes", async () => {
    writeWorker("Hello");
    const { run, url } = await started(["--env", "NAME=World"]);
    // What one has counted, the next one does not see.
    expect(await Promise.all([textOf(url), textOf(url)])).toEqual(["Hello 1", "Hello 1"]);
    await run.until(/\{"event":"log","vm":"vm-[0-9a-f]+","level":"info","text":"asked for the greeting"\}/);
    expect(await textOf(`${url}/name`)).toBe('{"name":"World"}');
    expect(await textOf(`${url}/__scheduled?cron=0+3+*+*+*`)).toMatch(/^scheduled\(\) ran in vm-/);
    await run.until(/"text":"called for 0 3 \* \* \* 1"/);
    expect((await fetch(`${url}/__scheduled?cron=boom`)).status).toBe(502);
    await run.until(/Error: it went wrong at night\\n.*worker\.ts:/);
    const body = crypto.getRandomValues(new Uint8Array(60_000));
    const echoed = await fetch(`${url}/echo`, { method: "POST", body });
    expect(Buffer.from(await echoed.arrayBuffer()).equals(Buffer.from(body))).toBe(true);
    const missing = await fetch(`${url}/nowhere`, { method: "HEAD" });
    expect([missing.status, await missing.text()]).toEqual([404, ""]);
    // The worker's own answer, and where it happened, by the worker's own source.
    expect((await fetch(`${url}/boom`)).status).toBe(500);
    await run.until(/Error: it went wrong\\n.*worker\.ts:10:\d+/);

    writeFileSync(join(sandbox.directory, "worker.ts"), "import 'no-such-package';");
    await run.until(/"event":"not-loaded","code":"BAD_ARGUMENT","message":".*no-such-package/);
    expect(await textOf(url)).toBe("Hello 1");
    writeWorker("Goodbye");
    await run.until(/(?:Worker: loaded in [^\n]+\n[\s\S]*){2}/);
    expect(await textOf(url)).toBe("Goodbye 1");
    await ended(run);
  });

  test("has one child serve many requests with shared isolation", async () => {
    writeWorker("Hello");
    const { run, url } = await started(["--isolation", "shared", "--no-watch"]);
    expect(await textOf(url)).toBe("Hello 1");
    expect(await textOf(url)).toBe("Hello 2");
    await ended(run);
  });

  test("takes isolation and variables from flurry.jsonc, over which options win", async () => {
    writeWorker("Hello");
    const config = {
      main: "worker.ts",
      env: { NAME: "file" },
      http: { isolation: { mode: "session", header: "x-session" } },
    };
    writeFileSync(join(sandbox.directory, "dev.jsonc"), JSON.stringify(config));
    const { run, url } = await started(["--config", "dev.jsonc", "--no-watch"]);
    // All requests are one session.
    expect([await textOf(url), await textOf(url)]).toEqual(["Hello 1", "Hello 2"]);
    expect(await textOf(`${url}/name`)).toBe('{"name":"file"}');
    await ended(run);
    const other = await started(["--config", "dev.jsonc", "--isolation", "request", "--env", "NAME=option"]);
    expect([await textOf(other.url), await textOf(other.url)]).toEqual(["Hello 1", "Hello 1"]);
    expect(await textOf(`${other.url}/name`)).toBe('{"name":"option"}');
    await ended(other.run);
  });

  test("has a worker's fetch() go where --allow says, from its forks, and ends what one leaves behind", async () => {
    await using site = await OutboundSite.open();
    writeFileSync(
      join(sandbox.directory, "worker.ts"),
      `const ask = (to: string) => fetch(to).then((r) => r.text(), (e) => e.name + ": " + e.message);
      let inParent: string;
      export default {
        async setup() { inParent = await ask("http://${site.host}/slow"); },
        async fetch(request: Request) {
          const { pathname } = new URL(request.url);
          const to = "http://${site.host}" + pathname;
          if (pathname === "/parent") return new Response(inParent);
          if (pathname === "/private") return new Response(await ask("http://127.0.0.1:1/"));
          if (pathname === "/hang") { fetch(to).catch(() => {}); await Bun.sleep(100); return new Response("left"); }
          return request.body ? await fetch(to, { method: "POST", body: request.body }) : await fetch(to);
        },
      };`,
    );
    const { run, url } = await started(["--allow", site.host, "--no-watch"]);
    const text = "the same text ".repeat(2000);
    expect(await Promise.all([textOf(`${url}/gzip`), textOf(`${url}/slow`)])).toEqual([text, "slow"]);
    const body = crypto.getRandomValues(new Uint8Array(60_000));
    const long = new Blob(Array.from({ length: 50 }, () => body));
    const echo = JSON.parse(await textOf(`${url}/echo`, { method: "POST", body: long }));
    const hash = createHash("sha256")
      .update(await long.bytes())
      .digest("hex");
    expect(echo).toMatchObject({ method: "POST", bytes: 3_000_000, hash });
    expect(await textOf(`${url}/parent`)).toMatch(/^TypeError: .*no network before its fork/);
    expect(await textOf(`${url}/private`)).toMatch(/^TypeError: .*127\.0\.0\.1:1.*"allow"/);
    expect(await textOf(`${url}/hang`)).toBe("left");
    // The fork that had asked is gone, and so is what it had asked for.
    await eventually(() => site.broken > 0 && site.connections === 0);
    await ended(run);
    const wrong = await sandbox.flurry(["dev", "worker.ts", "--allow", "http://x"]);
    expect([wrong.status, wrong.stdout]).toEqual([2, ""]);
    expect(wrong.stderr).toContain('"http://x" is neither a host nor host:port');
  });

  test("says what is wrong with a module, and starts nothing", async () => {
    const missing = await sandbox.flurry(["dev", "nothing.ts"]);
    expect([missing.status, missing.stdout]).toEqual([2, ""]);
    expect(missing.stderr).toContain("There is no worker at");
    writeFileSync(join(sandbox.directory, "wrong.ts"), "import 'no-such-package';");
    const wrong = await sandbox.flurry(["dev", "wrong.ts"]);
    expect([wrong.status, wrong.stdout]).toEqual([2, ""]);
    expect(wrong.stderr).toContain("no-such-package");
  });
});
