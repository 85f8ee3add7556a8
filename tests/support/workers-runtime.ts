import { symlinkSync } from "node:fs";
import { join } from "node:path";
import { WorkerSpec, type WorkerSpecInput } from "../../runtime/api/mod.ts";
import { flurryHome } from "../../runtime/home.ts";
import { familyOf } from "../../runtime/jobs/family.ts";
import type { Attempt, AttemptIo, TaskRuntime } from "../../runtime/jobs/task-runtime.ts";
import { baseImage, type TemporaryDirectory, temporaryDirectory } from "./vm.ts";

export const never = new AbortController().signal;

/** A data directory with the machine's images and parents of its own. */
export async function homeWithImages(): Promise<TemporaryDirectory> {
  await baseImage();
  const home = temporaryDirectory();
  symlinkSync(join(flurryHome(), "images"), join(home.path, "images"));
  return home;
}

/** A worker of a shell script in a small guest. */
export function script(text: string, changes: Partial<WorkerSpecInput> = {}): WorkerSpec {
  return WorkerSpec.parse({ image: "base", memoryMiB: 128, command: ["/bin/sh", "-c", text], ...changes });
}

/** What an attempt gave. */
interface Outcome {
  started?: Parameters<AttemptIo["started"]>[0];
  stdout: string;
  stderr: string;
  artifacts: { [path: string]: string };
}

/** Runs one attempt as a dispatcher does: prepares, waits for a place, runs. */
export async function attempt(
  runtime: TaskRuntime,
  spec: WorkerSpec,
  changes: Partial<Attempt> & { io?: Partial<AttemptIo>; signal?: AbortSignal } = {},
) {
  const { io, signal = never, ...rest } = changes;
  const family = familyOf(spec);
  const record: Outcome = { stdout: "", stderr: "", artifacts: {} };
  await runtime.prepare(family, spec, signal);
  using _place = await runtime.admit(family, signal);
  const exit = await runtime.run(
    { family, spec, job: "job-test", owner: "", index: 0, name: "test", env: {}, ...rest },
    {
      started: (child) => {
        record.started = child;
      },
      output: (stream, chunk) => {
        record[stream] += Buffer.from(chunk).toString();
      },
      artifact: async ({ path }, content) => {
        record.artifacts[path] = Buffer.concat(await Array.fromAsync(content)).toString();
      },
      ...io,
    },
    signal,
  );
  return { ...exit, ...record };
}

/** The names of a runtime's steps while `work` is done, in order. */
export async function stepsDuring(
  runtime: TaskRuntime,
  family: string,
  work: Promise<unknown>,
): Promise<string[]> {
  const steps: string[] = [];
  const look = () => {
    const { step } = runtime.readiness(family);
    if (step !== undefined && step !== steps.at(-1)) steps.push(step);
  };
  using _listening = runtime.onReadiness((changed) => {
    if (changed === family) look();
  });
  look();
  await work;
  return steps;
}
