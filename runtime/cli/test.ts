import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { Command, InvalidArgumentError } from "commander";
import pLimit from "p-limit";
import { FlurryError } from "../../errors/errors.ts";
import { formatMs, formatTable } from "./format.ts";
import { Output } from "./output.ts";
import { cliSignal } from "./signal.ts";
import { type Layer, type LayerContext, type LayerName, layerNames, planLayer } from "./test-layers.ts";
import { runStep, type StepResult } from "./test-run.ts";

interface TestOptions {
  layer: LayerName[];
  filter?: string;
}

interface LayerResult {
  name: LayerName;
  passed: number;
  failed: number;
  skipped: number;
  ms: number;
  failures: string[];
}

/** `flurry test`: the one way to run the project's tests and checks. */
export function testCommand(): Command {
  return new Command("test")
    .description("Runs the checks and the tests and closes with the line `N passed, N failed`")
    .option("--layer <name>", `one of ${layerNames.join(", ")}; may be given more than once`, addLayer, [])
    .option("--filter <text>", "only test files whose path contains this text")
    .argument("[args...]", "arguments for `bun test`, after --")
    .action(runTests);
}

function addLayer(value: string, layers: LayerName[]): LayerName[] {
  const names = value.split(",").map((part) => {
    const name = layerNames.find((candidate) => candidate === part);
    if (name === undefined) throw new InvalidArgumentError(`Layers are ${layerNames.join(", ")}`);
    return name;
  });
  return [...layers, ...names];
}

async function runTests(extra: string[], options: TestOptions): Promise<void> {
  const output = new Output();
  const selected =
    options.layer.length > 0 ? layerNames.filter((name) => options.layer.includes(name)) : layerNames;
  const reports = await mkdtemp(join(tmpdir(), "flurry-test-"));
  const context: LayerContext = {
    root: fileURLToPath(new URL("../..", import.meta.url)),
    bun: findBun(),
    reports,
    extra,
    ...(options.filter === undefined ? {} : { filter: options.filter }),
  };
  const results: LayerResult[] = [];
  try {
    for (const name of selected) {
      const layer = await planLayer(name, context);
      if (layer.steps.length === 0 && options.filter !== undefined) continue;
      results.push(await runLayer(layer, context, output));
    }
  } finally {
    await rm(reports, { recursive: true, force: true });
  }
  process.exitCode = report(results, output);
}

async function runLayer(layer: Layer, context: LayerContext, output: Output): Promise<LayerResult> {
  const start = performance.now();
  output.print(`== ${layer.name}`);
  const total: LayerResult = { name: layer.name, passed: 0, failed: 0, skipped: 0, ms: 0, failures: [] };
  using progress = process.stderr.isTTY ? output.progress(layer.name, layer.steps.length) : undefined;
  const limit = pLimit(layer.concurrency);
  await Promise.all(
    layer.steps.map((step) =>
      limit(async () => {
        progress?.describe(step.name);
        const result = await runStep(step, {
          cwd: context.root,
          timeoutMs: layer.stepTimeoutMs,
          signal: cliSignal(),
        });
        addResult(total, result);
        showResult(result, output);
        progress?.advance();
      }),
    ),
  );
  if (total.passed + total.failed === 0) {
    total.failed = 1;
    total.failures.push(`${layer.name}: No test was executed`);
  }
  total.ms = performance.now() - start;
  return total;
}

function addResult(total: LayerResult, result: StepResult): void {
  total.passed += result.passed;
  total.failed += result.failed;
  total.skipped += result.skipped;
  if (result.failed === 0) return;
  const why = result.reason ?? `${result.failed} failed`;
  total.failures.push(`${result.name}: ${why}`);
}

function showResult(result: StepResult, output: Output): void {
  const counts = [`${result.passed} ok`];
  if (result.failed > 0) counts.push(`${result.failed} not ok`);
  if (result.skipped > 0) counts.push(`${result.skipped} skipped`);
  const mark = result.failed > 0 ? "✗" : "✓";
  output.print(`${mark} ${result.name}  ${counts.join(", ")}  ${formatMs(result.ms)}`);
  if (result.failed === 0) return;
  output.print(result.output.trimEnd().replaceAll(/^/gm, "  | "));
  if (result.reason !== undefined) output.print(`  | ${result.reason}`);
}

/** Prints the layers and the closing line. Returns the exit code. */
function report(results: readonly LayerResult[], output: Output): number {
  const columns = [
    { title: "layer" },
    { title: "ok", align: "right" },
    { title: "not ok", align: "right" },
    { title: "skipped", align: "right" },
    { title: "time", align: "right" },
  ] as const;
  const rows = results.map((layer) => [
    layer.name,
    String(layer.passed),
    String(layer.failed),
    String(layer.skipped),
    formatMs(layer.ms),
  ]);
  output.print(`\n${formatTable(columns, rows)}`);
  for (const failure of results.flatMap((layer) => layer.failures)) output.print(`✗ ${failure}`);
  const passed = results.reduce((sum, layer) => sum + layer.passed, 0);
  let failed = results.reduce((sum, layer) => sum + layer.failed, 0);
  if (passed + failed === 0) {
    output.print("✗ No test was executed");
    failed = 1;
  }
  output.print(`\n${passed} passed, ${failed} failed`);
  return failed === 0 ? 0 : 1;
}

/** `./flurry` says where Bun is; without it, this process may be Bun itself. */
function findBun(): string {
  const bun = process.env.FLURRY_BUN ?? (process.versions.bun === undefined ? undefined : process.execPath);
  if (bun !== undefined) return bun;
  throw new FlurryError("REQUIREMENT_MISSING", "The tests need Bun, which was not found", {
    hint: "Start them with ./flurry test, or set FLURRY_BUN",
  });
}
