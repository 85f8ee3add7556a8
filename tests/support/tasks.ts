import { Admission } from "../../runtime/fork/admission.ts";
import type { Child } from "../../runtime/fork/child.ts";
import type { Parent } from "../../runtime/fork/parent.ts";
import { type RunTasksOptions, runTasks, type TaskResult } from "../../runtime/jobs/run-tasks.ts";
import type { TaskSpec } from "../../runtime/jobs/task.ts";

export type Task = Omit<TaskSpec, "index" | "env"> & { env?: Record<string, string> };

/** Runs tasks in children of a parent, two at a time. `children` gets each child by its task's index. */
export function runInChildren(
  parent: Parent,
  count: number,
  task: (index: number) => Task,
  { children, ...changes }: Partial<RunTasksOptions> & { children?: Map<number, Child> } = {},
): Promise<TaskResult[]> {
  return runTasks({
    start: async ({ identity, signal }) => {
      const child = await parent.fork({ identity, signal });
      children?.set(identity.index, child);
      return child;
    },
    admission: new Admission({ memoryBytes: Number.MAX_SAFE_INTEGER, slots: 2 }).family(
      parent.descriptor.ram.bytes,
    ),
    count,
    name: "task",
    ...changes,
    task: (index) => ({ env: {}, ...task(index) }),
  });
}

/** A command line for the guest's shell. */
export function sh(script: string): readonly string[] {
  return ["/bin/sh", "-c", script];
}
