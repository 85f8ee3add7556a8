import { mkdtempSync } from "node:fs";
import { readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Command } from "commander";
import { FlurryError } from "../../errors/errors.ts";
import { ColdVm } from "../fork/cold-vm.ts";
import { forkRetrying } from "../fork/fork-retrying.ts";
import { type RunTasksOptions, runTasks, type TaskResult } from "../jobs/run-tasks.ts";
import { taskWarmUp } from "../jobs/task.ts";
import { Host } from "../vm/host.ts";
import { requireWritable, writeOut } from "./demo-out.ts";
import { Picture } from "./demo-picture.ts";
import {
  DEFAULT_SCENE,
  exampleScene,
  filesOf,
  findScene,
  povray,
  povrayError,
  requireScene,
  type Scene,
} from "./demo-scene.ts";
import { demoTable, type Run } from "./demo-table.ts";
import { divide, type Size, type Tile } from "./demo-tiles.ts";
import { formatMs } from "./format.ts";
import { ensureImage } from "./image.ts";
import { positiveInteger } from "./options.ts";
import { Output } from "./output.ts";
import { type ForkSession, openSession } from "./session.ts";
import { cliSignal } from "./signal.ts";

const IMAGE = "povray";
/** Characters of a task's stderr that are kept, from the end. */
const STDERR_CHARS = 4000;

interface DemoOptions {
  children: number;
  size: Size;
  scene: string;
  out: string;
  compare: boolean;
  fresh?: boolean;
  json?: boolean;
}

const EXAMPLES = `
Examples:
  flurry demo
  flurry demo --children 16 --size 640x480 --out picture.png
  flurry demo --scene advanced/chess2.pov      one of Debian's povray-examples
  flurry demo --scene my-scene.pov             a file of yours

The first run builds the image and boots the parent; later runs start from the frozen parent.`;

/** `flurry demo`: a picture rendered in tiles by forked VMs, beside the same with cold-booted ones. */
export function demoCommand(): Command {
  return new Command("demo")
    .summary("Render a picture in forked VMs and show how long each step takes")
    .description("Renders a POV-Ray scene, one tile a forked VM, and shows how long each step takes")
    .option("--children <n>", "number of children and tiles", positiveInteger("--children"), 8)
    .option("--size <WxH>", "size of the picture in pixels", parseSize, { width: 320, height: 240 })
    .option("--scene <file>", "a .pov file, or one of povray-examples", DEFAULT_SCENE)
    .option("--out <file>", "where the picture goes", "flurry-demo.png")
    .option("--no-compare", "leave out the same with cold-booted VMs")
    .option("--fresh", "boot a new parent even if a frozen one is on disk")
    .option("--json", "print JSON lines")
    .addHelpText("after", EXAMPLES)
    .action((options: DemoOptions) => demo(options));
}

async function demo(options: DemoOptions): Promise<void> {
  const signal = cliSignal();
  const output = new Output({ json: options.json ?? false });
  const out = requireWritable(options.out);
  const scene = await findScene(options.scene);
  const tiles = tilesOf(options);
  await using host = await Host.open({ signal });
  const image = await ensureImage(IMAGE, { home: host.home, output, signal });
  await using session = await openSession({
    host,
    image,
    output,
    // A few pixels of the picture bring POV-Ray, its includes and the scene into the page cache.
    warmUp: taskWarmUp(
      povray(exampleScene(DEFAULT_SCENE), { width: 8, height: 6 }, undefined, "/tmp/warm.png"),
    ),
    fresh: options.fresh,
    shells: Math.min(host.cores, tiles.length),
    signal,
  });
  await requireScene(options.scene, scene, session.parent, signal);
  const job = { scene, tiles, size: options.size, output, session, signal };
  const forked = await render(job, `Rendering ${tiles.length} tiles in forked VMs`, (start) =>
    forkRetrying(session.parent, start),
  );
  await writeOut(out, forked.picture.toPng());
  output.print(`\nPicture: ${out} (${tiles.length} tiles, each from a child of its own)`);
  const cold = options.compare
    ? await render(job, `The same with ${tiles.length} cold-booted VMs`, ({ identity, signal }) =>
        ColdVm.start({ host, profile: session.parent.profile, boot: image, identity, signal }),
      )
    : undefined;
  output.print(`\n${demoTable(session.origin, forked, cold)}`);
  const differences = cold?.picture.differences(forked.picture);
  if (differences !== undefined) output.print(comparison(differences));
  output.emit({
    event: "done",
    picture: out,
    origin: session.origin,
    forked: figures(forked),
    cold: cold && figures(cold),
    differences,
  });
}

interface Job {
  scene: Scene;
  tiles: Tile[];
  size: Size;
  output: Output;
  session: ForkSession;
  signal: AbortSignal;
}

async function render(
  job: Job,
  label: string,
  start: RunTasksOptions["start"],
): Promise<Run & { picture: Picture }> {
  const { tiles, size, output, session, signal } = job;
  const began = performance.now();
  const dir = mkdtempSync(join(tmpdir(), "flurry-demo-"));
  using progress = output.progress(label, tiles.length);
  try {
    const errors = new Map<number, string>();
    const results = await runTasks({
      start,
      admission: session.admission,
      count: tiles.length,
      name: "tile",
      task: (index) => ({
        argv: povray(job.scene, size, tiles[index], "/out/tile.png"),
        env: {},
        files: filesOf(job.scene),
        outDir: join(dir, String(index)),
      }),
      onEvent: (event) => {
        if (event.event === "output" && event.stream === "stderr") {
          const text = (errors.get(event.task) ?? "") + new TextDecoder().decode(event.chunk);
          errors.set(event.task, text.slice(-STDERR_CHARS));
        }
        if (event.event === "ended") progress.advance();
      },
      signal,
    });
    const picture = new Picture(size);
    for (const result of results) {
      requireSuccess(result, errors.get(result.index));
      picture.place(tiles[result.index]!, await readFile(join(dir, String(result.index), "tile.png")));
    }
    const totalMs = performance.now() - began;
    progress.finish(`${label}: ${formatMs(totalMs)}`);
    return { picture, results, totalMs };
  } finally {
    await rm(dir, { recursive: true, force: true });
  }
}

function requireSuccess(result: TaskResult, stderr = ""): void {
  if (result.state === "succeeded") return;
  const { outcome, error } = result;
  const how = outcome?.signal ? `was ended by ${outcome.signal}` : `exited with status ${outcome?.code}`;
  const why = error?.message ?? `POV-Ray ${how}:\n${povrayError(stderr)}`;
  throw new FlurryError("TASK_FAILED", `Tile ${result.index} was not rendered: ${why}`);
}

function tilesOf({ size, children }: DemoOptions): Tile[] {
  try {
    return divide(size, children);
  } catch (cause) {
    throw new FlurryError("BAD_ARGUMENT", cause instanceof Error ? cause.message : String(cause), { cause });
  }
}

function parseSize(value: string): Size {
  const match = /^(\d{1,4})x(\d{1,4})$/.exec(value);
  const size = { width: Number(match?.[1]), height: Number(match?.[2]) };
  if (!match || size.width < 1 || size.height < 1) {
    throw new FlurryError("BAD_ARGUMENT", `--size takes WIDTHxHEIGHT, such as 320x240, not "${value}"`);
  }
  return size;
}

function comparison(differences: number): string {
  if (differences === 0) return "Both ways give the same picture, pixel for pixel.";
  return `The two pictures differ in ${differences} pixels.`;
}

function figures({ results, totalMs }: Run): object {
  return {
    totalMs,
    tasks: results.map(({ index, times, totalMs: ms, privateBytes }) => ({ index, times, ms, privateBytes })),
  };
}
