import { afterAll, describe, expect, test } from "bun:test";
import { copyFileSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { bundleWorker, bundleWorkerHost } from "../../guest-agent/worker-host/bundle.ts";
import { rejection } from "../support/agent-peer.ts";

const root = mkdtempSync(join(tmpdir(), "flurry-bundle-test-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));

function sources(files: Record<string, string>): string {
  const directory = mkdtempSync(join(root, "s-"));
  for (const [name, text] of Object.entries(files)) {
    mkdirSync(dirname(join(directory, name)), { recursive: true });
    writeFileSync(join(directory, name), text);
  }
  return directory;
}

const worker = {
  "worker.ts":
    'import { word } from "./lib/word.ts";\nimport data from "./data.json";\nexport default { fetch: () => new Response(word + data.n + import.meta.main) };\nexport const place = __dirname;',
  "lib/word.ts":
    "export const word: string = process.env.NODE_ENV === 'production' ? 'fast' : 'slow';\nif (import.meta.main) throw new Error('not the main module');",
  "data.json": '{"n":1}',
};

describe("bundleWorker()", () => {
  test("gives one module with its sources in a map, the same wherever they lie", async () => {
    const one = await bundleWorker(join(sources(worker), "worker.ts"));
    const two = await bundleWorker(join(sources(worker), "worker.ts"));
    expect(one).toEqual(two);
    expect(one.bytes).toBe(Buffer.byteLength(one.code));
    expect(one.code).not.toContain(root);
    expect(one.code).toContain("sourceMappingURL=data:application/json");
    const path = join(root, "bundle.js");
    writeFileSync(path, one.code);
    const module = await import(path);
    expect(await module.default.fetch().text()).toBe("fast1true");
  });

  test("names what cannot be bundled", async () => {
    const addon = sources({
      "worker.ts": 'const addon = require("./addon.node");\nexport default () => addon;',
    });
    copyFileSync(process.execPath, join(addon, "addon.node"));
    const cases: [directory: string, message: RegExp][] = [
      [sources({ "worker.ts": 'import "no-such-package-here";' }), /no-such-package-here.*worker\.ts:1/],
      [sources({ "worker.ts": 'import "./gone.ts";' }), /gone\.ts/],
      [sources({ "worker.ts": "export default {" }), /worker\.ts:1/],
      [addon, /native addons.*addon\.node/],
      [sources({}), /There is no worker at/],
    ];
    for (const [directory, message] of cases) {
      const error = await rejection(bundleWorker(join(directory, "worker.ts")));
      expect(error).toMatchObject({ name: "BundleError", code: "BAD_ARGUMENT" });
      expect(error.message).toMatch(message);
    }
  });

  test("runs no macros of the sources", async () => {
    const directory = sources({
      "worker.ts": 'import { run } from "./macro.ts" with { type: "macro" };\nexport default () => run();',
      "macro.ts": `import { writeFileSync } from "node:fs";\nexport function run() { writeFileSync(${JSON.stringify(join(root, "ran"))}, ""); return 1; }`,
    });
    expect(await rejection(bundleWorker(join(directory, "worker.ts")))).toMatchObject({
      code: "BAD_ARGUMENT",
    });
    expect(readdirSync(root)).not.toContain("ran");
  });

  test("says when there is no Bun, and when it was aborted", async () => {
    const entry = join(sources(worker), "worker.ts");
    expect(await rejection(bundleWorker(entry, { bun: "/nowhere/bun" }))).toMatchObject({
      code: "REQUIREMENT_MISSING",
    });
    expect(await rejection(bundleWorker(entry, { signal: AbortSignal.abort() }))).toMatchObject({
      code: "ABORTED",
    });
  });
});

test("bundleWorkerHost() builds once for each content, also when several want it at once", async () => {
  const cacheDir = join(root, "cache");
  const all = await Promise.all([1, 2, 3].map(() => bundleWorkerHost({ cacheDir })));
  expect(new Set(all.map((bundle) => bundle.hash)).size).toBe(1);
  expect(readdirSync(cacheDir)).toHaveLength(1);
  expect(await bundleWorkerHost({ cacheDir })).toEqual(all[0]!);
  expect(all[0]!.bytes).toBeLessThan(300_000);
});
