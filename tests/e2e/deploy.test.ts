import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { mkdirSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { describeError, FlurryError } from "../../errors/errors.ts";
import type { WorkerSpec, WorkerVersion } from "../../runtime/api/mod.ts";
import type { GatewayRuntime } from "../../runtime/gateway/context.ts";
import type { Readiness } from "../../runtime/jobs/ports.ts";
import { noFigures } from "../../runtime/workers/js/request-figures.ts";
import { WorkerLogs } from "../../runtime/workers/js/worker-logs.ts";
import { type CliOptions, type CliResult, CliSandbox, eventsOf } from "../support/cli.ts";
import { GatewaySandbox } from "../support/gateway-sandbox.ts";
import { ScriptedRuntime } from "../support/scripted-runtime.ts";

setDefaultTimeout(60_000);

/** Loads modules by words in their code, without VMs, and remembers what failed as a real one does. */
class LoadingRuntime extends ScriptedRuntime {
  readonly #failures = new Map<string, Readiness["error"]>();
  readonly #steps = new Map<string, string>();

  override async prepare(family: string, spec: WorkerSpec, signal: AbortSignal): Promise<void> {
    if (super.readiness(family).state === "ready") return;
    this.#steps.set(family, "loading the worker");
    this.changed(family);
    try {
      // Long enough to be seen.
      await new Promise((resolve) => setTimeout(resolve, 300));
      await super.prepare(family, spec, signal);
      this.#failures.delete(family);
    } catch (error) {
      const { code, message } = describeError(error);
      this.#failures.set(family, { code, message });
      throw error;
    } finally {
      this.#steps.delete(family);
      this.changed(family);
    }
  }

  override readiness(family: string): Readiness {
    const step = this.#steps.get(family);
    if (step !== undefined) return { state: "preparing", step };
    const error = this.#failures.get(family);
    return error ? { state: "failed", error } : super.readiness(family);
  }
}

function load(_family: string, { module }: WorkerSpec): void {
  if (!module) throw new Error("No module");
  if (module.code.includes("boom")) {
    const stack = "Error: boom\n    at setup (worker.ts:3:9)";
    throw new FlurryError("WORKER_LOAD_FAILED", `${module.entry} does not load: boom\n${stack}`);
  }
  if (module.code.includes("no room")) throw new FlurryError("NO_SPACE", "The disk is full");
}

/** Calls `scheduled()` of workers, which fails for the cron of each midnight. */
const requests: GatewayRuntime["requests"] = {
  handle: () => Promise.reject(new Error("This runtime answers no requests")),
  scheduled: async (_worker, { cron }) => ({
    ...{ vm: "vm-1", ms: 5 },
    ...(cron === "0 0 * * *" && { error: { code: "TASK_FAILED", message: "boom" } }),
  }),
  remove: () => undefined,
  figures: noFigures,
  logs: new WorkerLogs(),
};

const good = 'export default { fetch: () => new Response("VERSION") };\n';
const bad = 'export default { setup() { throw new Error("boom"); }, fetch: () => new Response() };\n';

let cli: CliSandbox;
let gateway: GatewaySandbox;

beforeAll(async () => {
  cli = new CliSandbox();
  const runtime = Object.assign(new LoadingRuntime({ prepare: load }), { requests });
  gateway = await GatewaySandbox.open({ runtime: () => runtime });
});

afterAll(async () => {
  await gateway[Symbol.asyncDispose]();
  await cli[Symbol.asyncDispose]();
});

function write(files: Record<string, string>): void {
  for (const [name, text] of Object.entries(files)) {
    mkdirSync(dirname(join(cli.directory, name)), { recursive: true });
    writeFileSync(join(cli.directory, name), text);
  }
}

function flurry(args: string[], options: CliOptions = {}): Promise<CliResult> {
  return cli.flurry(args, { ...options, env: { FLURRY_URL: gateway.url, FLURRY_KEY: "", ...options.env } });
}

function version(name: string, number?: number): Promise<WorkerVersion> {
  return gateway.json(`/v1/workers/${name}${number === undefined ? "" : `?version=${number}`}`);
}

describe("flurry deploy", () => {
  test("bundles a module, waits until it is ready, and prints where it answers", async () => {
    write({
      "worker.ts": 'import { word } from "./word.ts";\nexport default { fetch: () => new Response(word) };\n',
      "word.ts": 'export const word: string = "bundled";\n',
    });
    const options = [
      "--isolation",
      "session",
      "--env",
      "A=1",
      "--secret",
      "B=b",
      "--memory",
      "256",
      "--cpus",
      "2",
    ];
    const lists = [
      "--allow",
      "db:1",
      "--allow",
      "db:2",
      "--host",
      "a.example.com",
      "--warm",
      "/",
      "--warm",
      "/b",
    ];
    const result = await flurry(["deploy", "worker.ts", "--name", "hello", ...options, ...lists]);
    expect(result).toMatchObject({ status: 0, stdout: `hello@1 ${gateway.url}/w/hello/\n` });
    expect(result.stderr).toContain(
      "Deployed hello@1\nhello@1 ...\nhello@1: loading the worker\nReady after ",
    );
    const { spec, state, current } = await version("hello");
    expect({ state, current }).toEqual({ state: "ready", current: true });
    expect(spec).toMatchObject({
      module: { entry: "worker.ts", warmUp: [{ path: "/" }, { path: "/b" }] },
      http: { isolation: { mode: "session" }, hosts: ["a.example.com"] },
      allow: ["db:1", "db:2"],
      env: { A: "1" },
      secrets: { B: "b" },
      memoryMiB: 256,
      cpus: 2,
    });
    expect(spec.module?.code).toContain('"bundled"');
  });

  test("says when nothing has changed, and prints JSON lines", async () => {
    write({ "worker.ts": good });
    const args = ["deploy", "worker.ts", "--name", "same", "--json"];
    const url = `${gateway.url}/w/same/`;
    const first = await flurry(args);
    expect(first.stderr).toBe("");
    expect(eventsOf(first).at(-1)).toMatchObject({
      event: "deployed",
      name: "same",
      version: 1,
      created: true,
      url,
    });
    expect(eventsOf(await flurry(args)).at(-1)).toMatchObject({ version: 1, created: false });
  });

  test("shows why a version does not load, and goes back to the one before", async () => {
    write({ "worker.ts": good });
    expect((await flurry(["deploy", "worker.ts", "--name", "broken"])).status).toBe(0);
    write({ "worker.ts": bad });
    const result = await flurry(["deploy", "worker.ts", "--name", "broken"]);
    expect(result).toMatchObject({ status: 2, stdout: "" });
    expect(result.stderr).toContain("flurry: broken@2 is not ready: worker.ts does not load: boom");
    expect(result.stderr).toContain("    at setup (worker.ts:3:9)\n");
    expect(result.stderr).toContain("  broken@1 is current again\n  code: WORKER_LOAD_FAILED\n");
    expect(await version("broken")).toMatchObject({ version: 1, current: true, state: "ready" });
    // The same code is tried again: what is told is not the failure of before.
    const again = await flurry(["deploy", "worker.ts", "--name", "broken", "--json"]);
    expect(again.status).toBe(2);
    expect(eventsOf(again).slice(-2)).toMatchObject([
      { event: "restored", name: "broken", version: 1 },
      { event: "error", code: "WORKER_LOAD_FAILED" },
    ]);
  });

  test("has nothing to go back to when the first version does not load", async () => {
    write({ "worker.ts": bad });
    const { status, stderr } = await flurry(["deploy", "worker.ts", "--name", "first"]);
    expect(status).toBe(2);
    expect(stderr).toContain("  first@1 stays as it is\n");
    expect(await version("first")).toMatchObject({ version: 1, state: "failed" });
  });

  test("keeps the code of what is not the module's fault", async () => {
    write({ "worker.ts": 'export default { fetch: () => new Response("no room") };\n' });
    const { status, stderr } = await flurry(["deploy", "worker.ts", "--name", "full"]);
    expect(status).toBe(5);
    expect(stderr).toContain("full@1 is not ready: The disk is full");
    expect(stderr).toContain("code: NO_SPACE");
  });

  test("leaves the version to the gateway after --timeout, and when it is interrupted", async () => {
    const never = new ScriptedRuntime({ prepare: () => new Promise(() => undefined) });
    await using slow = await GatewaySandbox.open({ runtime: () => never });
    write({ "worker.ts": good });
    const args = ["deploy", "worker.ts", "--name", "slow", "--url", slow.url];
    const { status, stderr } = await flurry([...args, "--timeout", "0.5"]);
    expect(status).toBe(5);
    expect(stderr).toContain("slow@1 is not ready after 0.5 s (preparing)");
    expect(stderr).toContain("code: NOT_READY");
    const run = cli.start(args);
    await run.until(/slow@1 \.\.\./);
    run.kill("SIGINT");
    expect((await run.ended).status).toBe(130);
    expect(await slow.json("/v1/workers/slow")).toMatchObject({ version: 1, current: true });
  });

  test("has scheduled() called at the times of --cron", async () => {
    write({ "worker.ts": good });
    const crons = ["*/5 * * * *", "0 3 * * MON"];
    const options = crons.flatMap((cron) => ["--cron", cron]);
    expect((await flurry(["deploy", "worker.ts", "--name", "nightly", ...options])).status).toBe(0);
    expect((await version("nightly")).spec.crons).toEqual(crons);
    const { status, stderr } = await flurry(["deploy", "worker.ts", "--name", "nightly", "--cron", "@daily"]);
    expect(status).toBe(2);
    expect(stderr).toContain("crons.0: must be five fields");
  });

  test("deploys what flurry.jsonc describes, without arguments", async () => {
    const config = '{ "name": "configured", "main": "src/app.ts", "env": { "A": "1", "B": "1" }, "cpus": 2 }';
    write({ "flurry.jsonc": config, "src/app.ts": good });
    try {
      const { status, stdout, stderr } = await flurry(["deploy", "--env", "B=2"]);
      expect({ status, stdout }).toEqual({
        status: 0,
        stdout: `configured@1 ${gateway.url}/w/configured/\n`,
      });
      expect(stderr).toContain("As flurry.jsonc says\n");
      const { spec } = await version("configured");
      expect(spec).toMatchObject({ cpus: 2, env: { A: "1", B: "2" }, module: { entry: "app.ts" } });
    } finally {
      rmSync(join(cli.directory, "flurry.jsonc"));
    }
  });

  test("names what is wrong before anything is deployed", async () => {
    write({
      "worker.ts": good,
      "import.ts": 'import "no-such-package-here";\nexport default {};\n',
      "bad.jsonc": '{\n  "name": "wrong",\n  "http": { "hosts": "all" }\n}\n',
    });
    const cases: [args: string[], message: string][] = [
      [["import.ts", "--name", "wrong"], "no-such-package-here"],
      [["gone.ts", "--name", "wrong"], "There is no worker at gone.ts"],
      [["worker.ts", "--config", "bad.jsonc"], 'bad.jsonc:3:22: "http.hosts" must be of type array'],
      [["worker.ts"], "The worker has no name"],
      [[], "No module is named"],
      [["worker.ts", "--name", "wrong", "--isolation", "none"], "Allowed choices are"],
      [["worker.ts", "--name", "wrong", "--allow", "nowhere"], "allow.0: must be HOST:PORT"],
    ];
    for (const [args, message] of cases) {
      const { status, stderr } = await flurry(["deploy", ...args]);
      expect(stderr).toContain(message);
      expect([args, status]).toEqual([args, 2]);
    }
    expect((await gateway.problem("/v1/workers/wrong")).code).toBe("WORKER_NOT_FOUND");
  });
});

describe("flurry worker", () => {
  test("rollback goes back by one version, past those that have failed", async () => {
    for (const text of [good, good.replace("VERSION", "two"), bad, good.replace("VERSION", "four")]) {
      write({ "worker.ts": text });
      await flurry(["deploy", "worker.ts", "--name", "turned"]);
    }
    expect(await version("turned")).toMatchObject({ version: 4 });
    const back = await flurry(["worker", "rollback", "turned"]);
    expect(back).toMatchObject({ status: 0, stdout: "turned@2 is current\n" });
    expect(back.stderr).toContain("turned@3 is left out: it has failed\n");
    expect(back.stderr).toContain("flurry worker use turned@4 goes forward again\n");
    expect((await flurry(["worker", "rollback", "turned"])).stdout).toBe("turned@1 is current\n");
    const none = await flurry(["worker", "rollback", "turned"]);
    expect(none.status).toBe(2);
    expect(none.stderr).toContain("There is no version to use before turned@1");
    expect((await flurry(["worker", "rollback", "nobody"])).stderr).toContain("WORKER_NOT_FOUND");
  });

  test("trigger calls scheduled() and tells how it went", async () => {
    write({ "worker.ts": good });
    await flurry(["deploy", "worker.ts", "--name", "called", "--cron", "*/5 * * * *"]);
    const called = await flurry(["worker", "trigger", "called"]);
    expect(called).toMatchObject({ status: 0, stdout: "scheduled() of called@1 ran in vm-1 for 5 ms\n" });
    const failed = await flurry(["worker", "trigger", "called", "--cron", "0 0 * * *", "--json"]);
    expect(failed.status).toBe(4);
    expect(eventsOf(failed)).toMatchObject([
      { event: "scheduled", cron: "0 0 * * *", outcome: "failed", vm: "vm-1" },
      { event: "error", code: "TASK_FAILED", message: "scheduled() of called@1 failed: boom" },
    ]);
    const logs = await flurry(["worker", "logs", "called"]);
    expect(logs.stdout).toMatch(
      / \[gateway\] scheduled\(\) for "0 0 \* \* \*" at .* failed: boom \(TASK_FAILED\)\n$/,
    );
  });

  test("ls shows modules beside commands", async () => {
    write({ "worker.ts": good });
    await flurry(["deploy", "worker.ts", "--name", "listed"]);
    const { status, stdout, stderr } = await flurry(["worker", "ls"]);
    expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
    expect(stdout).toMatch(/^listed@1 +current +ready +js /m);
  });
});
