import { afterAll, describe, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { WorkerSpec } from "../../runtime/api/mod.ts";
import {
  type DeploySpecOptions,
  deploySpec,
  isolationOf,
  workerName,
} from "../../runtime/cli/deploy-spec.ts";
import { parseJsonc } from "../../runtime/cli/jsonc-file.ts";
import {
  type ConfiguredWorker,
  configJsonSchema,
  configuredWorker,
  WorkerConfig,
} from "../../runtime/cli/worker-config.ts";
import { rejection } from "../support/agent-peer.ts";

const root = mkdtempSync(join(tmpdir(), "flurry-config-test-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));

function directory(files: Record<string, string>): string {
  const path = mkdtempSync(join(root, "d-"));
  for (const [name, text] of Object.entries(files)) {
    mkdirSync(dirname(join(path, name)), { recursive: true });
    writeFileSync(join(path, name), text);
  }
  return path;
}

function parse(text: string) {
  return parseJsonc(text, WorkerConfig, "flurry.jsonc");
}

describe("flurry.jsonc", () => {
  test("has comments and trailing commas, and is given as it is written, without defaults", () => {
    const text = `{
      // Who it is
      "$schema": "./flurry.schema.json",
      "name": "hello", "main": "src/worker.ts",
      "http": { "isolation": { "mode": "shared", "concurrency": 5 } }, /* many at once */
      "env": { "GREETING": "hello", },
    }`;
    expect(parse(text)).toEqual({
      $schema: "./flurry.schema.json",
      name: "hello",
      main: "src/worker.ts",
      http: { isolation: { mode: "shared", concurrency: 5 } },
      env: { GREETING: "hello" },
    });
  });

  const wrong: [text: string, message: string][] = [
    ["", "flurry.jsonc:1:1: Value expected"],
    ['{\n  "name": "a"\n  "main": "b"\n}', "flurry.jsonc:3:3: Comma expected"],
    ["[]", "flurry.jsonc:1:1: The file must be of type object"],
    ['{\n  "colour": 1\n}', 'flurry.jsonc:2:3: "colour" is unknown'],
    ['{ "image": "base" }', 'flurry.jsonc:1:3: "image" is unknown'],
    ['{ "module": { "code": "" } }', 'flurry.jsonc:1:15: "module.code" is unknown'],
    ['{ "memoryMiB": "512" }', 'flurry.jsonc:1:16: "memoryMiB" must be of type number'],
    ['{\n "env": { "1A": "" }\n}', 'flurry.jsonc:2:11: The key "env.1A" must be 1 to 128 letters'],
    ['{ "http": { "isolation": {\n "mode": "none" } } }', 'flurry.jsonc:2:10: "http.isolation.mode" must be'],
    ['{ "memory": "much" }', 'flurry.jsonc:1:13: "memory" must be one of "mapped"|"lazy"'],
    ['{ "allow": ["a:1", "b"] }', 'flurry.jsonc:1:20: "allow.1" must be HOST:PORT'],
    ['{ "module": { "warmUp": [\n{} ] } }', 'flurry.jsonc:2:1: "module.warmUp.0.path" is missing'],
    [
      '{ "http": { "isolation": { "mode": "session", "cookie": "a", "header": "b" } } }',
      "a cookie and a header",
    ],
  ];
  test.each(wrong)("%j is refused by its place", (text, message) => {
    expect(() => parse(text)).toThrow(message);
  });

  test("has the JSON Schema that is in docs/flurry.schema.json", () => {
    const file = fileURLToPath(new URL("../../docs/flurry.schema.json", import.meta.url));
    // Otherwise: ./flurry deploy --schema > docs/flurry.schema.json, and biome check --write.
    expect(JSON.parse(readFileSync(file, "utf8"))).toEqual(JSON.parse(JSON.stringify(configJsonSchema())));
  });
});

describe("configuredWorker()", () => {
  test("finds the file beside the module, and the module by the file", async () => {
    const path = directory({
      "app/flurry.jsonc": '{ "name": "beside", "main": "src/worker.ts" }',
      "other.jsonc": '{ "name": "named" }',
    });
    const beside = await configuredWorker(join(path, "app/worker.ts"), undefined);
    expect(beside).toMatchObject({ main: join(path, "app/worker.ts"), config: { name: "beside" } });
    const named = await configuredWorker(join(path, "app/worker.ts"), join(path, "other.jsonc"));
    expect(named.config).toEqual({ name: "named" });
    const main = await configuredWorker(undefined, join(path, "app/flurry.jsonc"));
    expect(join(process.cwd(), main.main)).toBe(join(path, "app/src/worker.ts"));
    expect(await configuredWorker(join(path, "none/worker.ts"), undefined)).toMatchObject({ config: {} });
  });

  test("says what is missing", async () => {
    const path = directory({ "flurry.jsonc": "{}" });
    const absent = join(path, "absent.jsonc");
    const cases: [Promise<ConfiguredWorker>, string][] = [
      [configuredWorker(undefined, undefined), "No module is named"],
      [configuredWorker("worker.ts", absent), `There is no ${absent}`],
      [configuredWorker(undefined, join(path, "flurry.jsonc")), "names no module"],
      [configuredWorker("worker.ts", path), `Cannot read ${path}`],
    ];
    for (const [attempt, message] of cases) {
      const error = await rejection(attempt);
      expect(error).toMatchObject({ code: "BAD_ARGUMENT" });
      expect(error.message).toContain(message);
    }
  });
});

describe("deploySpec()", () => {
  const bundle = { code: "export default {}", bytes: 17, hash: "" };

  function specOf(options: DeploySpecOptions, config: ConfiguredWorker["config"] = {}) {
    const spec = deploySpec(options, { main: "src/worker.ts", config, file: undefined }, bundle);
    // What it gives has to be what a gateway takes.
    WorkerSpec.parse(spec);
    return spec;
  }

  test("is the module alone when nothing else is said", () => {
    expect(specOf({})).toEqual({
      env: {},
      secrets: {},
      module: { entry: "worker.ts", code: bundle.code },
    });
  });

  test("takes all that the file says", () => {
    const config = parse(`{
      "name": "a", "main": "b.ts", "$schema": "c",
      "module": { "entry": "shop", "warmUp": [{ "path": "/", "method": "POST" }] },
      "http": { "access": "key", "hosts": ["a.example.com"], "isolation": { "mode": "session", "idleMs": 5 } },
      "allow": ["db:5432"], "env": { "A": "1" }, "secrets": { "B": "b" },
      "memoryMiB": 256, "cpus": 2, "memory": "lazy",
    }`);
    const { name: _, main: __, $schema: ___, ...rest } = config;
    expect(specOf({}, config)).toEqual({ ...rest, module: { ...config.module, code: bundle.code } });
  });

  test("lets options win: variables one by one, lists as a whole", () => {
    const config = parse(`{
      "module": { "warmUp": [{ "path": "/old" }] },
      "http": { "access": "key", "hosts": ["old.example.com"], "isolation": { "mode": "session", "idleMs": 5 } },
      "allow": ["old:1"], "env": { "A": "old", "KEPT": "1" }, "secrets": { "S": "old" }, "memoryMiB": 256,
    }`);
    const options: DeploySpecOptions = {
      isolation: "shared",
      env: { A: "new" },
      secret: { S: "new" },
      memory: 128,
      cpus: 2,
      allow: ["new:1"],
      host: ["new.example.com"],
      warm: ["/new"],
    };
    expect(specOf(options, config)).toEqual({
      http: { access: "key", hosts: ["new.example.com"], isolation: { mode: "shared" } },
      env: { A: "new", KEPT: "1" },
      secrets: { S: "new" },
      memoryMiB: 128,
      cpus: 2,
      allow: ["new:1"],
      module: { entry: "worker.ts", code: bundle.code, warmUp: [{ path: "/new" }] },
    });
  });

  test("keeps the limits of an isolation whose mode the option names again", () => {
    const configured = { mode: "session", idleMs: 5 } as const;
    expect(isolationOf("session", configured)).toEqual(configured);
    expect(isolationOf("request", configured)).toEqual({ mode: "request" });
    expect(isolationOf("shared", undefined)).toEqual({ mode: "shared" });
  });

  test("needs a name from somewhere", () => {
    const configured = { main: "worker.ts", config: { name: "file" }, file: "flurry.jsonc" };
    expect(workerName({}, configured)).toBe("file");
    expect(workerName({ name: "option" }, configured)).toBe("option");
    expect(() => workerName({}, { ...configured, config: {} })).toThrow("has no name");
  });

  test("refuses a bundle that no gateway takes", () => {
    const large = { ...bundle, code: "x".repeat(16 * 1024 * 1024 + 1) };
    expect(() => deploySpec({}, { main: "a.ts", config: {}, file: undefined }, large)).toThrow(
      "The bundle of a.ts has 16777217 characters",
    );
  });
});
