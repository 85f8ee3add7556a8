import { existsSync } from "node:fs";
import { readdir } from "node:fs/promises";
import { availableParallelism } from "node:os";
import { join, relative } from "node:path";

/** A program to run, and what it is called in the listing. */
export interface TestStep {
  name: string;
  argv: readonly string[];
  /** The JUnit report that the program writes; without one, its exit code is the one verdict. */
  report?: string;
}

/** A group of steps that is run and counted together. */
export interface Layer {
  name: LayerName;
  /** How many steps run at once. */
  concurrency: number;
  /** After this many milliseconds a step has hung and is ended. */
  stepTimeoutMs: number;
  steps: TestStep[];
}

export const layerNames = ["lint", "unit", "fuzz", "integration", "e2e", "runtime-deno"] as const;
export type LayerName = (typeof layerNames)[number];

export interface LayerContext {
  /** The repository's root. */
  root: string;
  /** Path of the Bun program. */
  bun: string;
  /** A directory for the reports. */
  reports: string;
  /** Only test files whose path contains this. */
  filter?: string;
  /** More arguments for the test runner. */
  extra: readonly string[];
}

/** Layers that start VMs run one file after the other: two at once would share the cores and time out. */
const layerLimits: Record<LayerName, { concurrency: number; stepTimeoutMs: number }> = {
  lint: { concurrency: availableParallelism(), stepTimeoutMs: 300_000 },
  unit: { concurrency: availableParallelism(), stepTimeoutMs: 300_000 },
  fuzz: { concurrency: availableParallelism(), stepTimeoutMs: 600_000 },
  integration: { concurrency: 1, stepTimeoutMs: 900_000 },
  e2e: { concurrency: 1, stepTimeoutMs: 1_200_000 },
  "runtime-deno": { concurrency: 1, stepTimeoutMs: 600_000 },
};

/** Finds what a layer consists of: the checks of `lint`, else one run for each test file. */
export async function planLayer(name: LayerName, context: LayerContext): Promise<Layer> {
  const steps = name === "lint" ? lintSteps(context) : await testSteps(name, context);
  return { name, ...layerLimits[name], steps };
}

/** The tools run on Bun: Debian 12's Node is too old for them. */
function lintSteps({ root, bun, filter }: LayerContext): TestStep[] {
  const tool = (name: string, ...args: string[]): TestStep => ({
    name: `lint/${name}`,
    argv: [bun, "--bun", join(root, "node_modules/.bin", name), ...args],
  });
  const steps = [
    tool("tsc", "-p", "."),
    tool("biome", "check", "--error-on-warnings", "--max-diagnostics=50", "."),
    tool("depcruise", "--config", ".dependency-cruiser.cjs", "--output-type", "err", ...existingRooms(root)),
    tool("knip", "--no-progress"),
    { name: "lint/sh", argv: ["sh", "-n", "flurry"] },
    { name: "lint/bash", argv: ["bash", "-n", ".ci/run"] },
  ];
  return filter === undefined ? steps : steps.filter((step) => step.name.includes(filter));
}

/** The directories with the project's TypeScript; a room that has not been built yet is not there. */
function existingRooms(root: string): string[] {
  const rooms = ["errors", "qmp", "memserver", "guest-agent", "runtime", "tests", "bench", "examples"];
  return rooms.filter((room) => existsSync(join(root, room)));
}

async function testSteps(name: LayerName, context: LayerContext): Promise<TestStep[]> {
  const files = await findTestFiles(join(context.root, "tests", name));
  return files
    .map((file) => relative(context.root, file))
    .filter((file) => context.filter === undefined || file.includes(context.filter))
    .map((file) => {
      const report = join(context.reports, `${file.replaceAll("/", "_")}.xml`);
      const argv = name === "runtime-deno" ? denoArgv(file, report, context) : bunArgv(file, report, context);
      return { name: file, argv, report };
    });
}

function bunArgv(file: string, report: string, { bun, extra }: LayerContext): string[] {
  const limits = ["--timeout", "180000", "--reporter=junit", `--reporter-outfile=${report}`];
  return [bun, "--no-env-file", "test", ...limits, ...extra, `./${file}`];
}

function denoArgv(file: string, report: string, { root, bun }: LayerContext): string[] {
  // The npm package's launcher finds the platform's program, or fetches it from its own package.
  const deno = [bun, "--bun", join(root, "node_modules/deno/bin.cjs")];
  return [...deno, "test", "--allow-all", "--no-check", `--junit-path=${report}`, file];
}

async function findTestFiles(directory: string): Promise<string[]> {
  if (!existsSync(directory)) return [];
  const entries = await readdir(directory, { withFileTypes: true, recursive: true });
  return entries
    .filter((entry) => entry.isFile() && entry.name.endsWith(".test.ts"))
    .map((entry) => join(entry.parentPath, entry.name))
    .sort();
}
