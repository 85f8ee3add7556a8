import type { Child } from "../runtime/fork/child.ts";
import type { Parent } from "../runtime/fork/parent.ts";
import { type Distribution, distributionOf } from "../runtime/stats.ts";
import type { PagesParent } from "./pages-parent.ts";

/** A short task, as many are: a shell that starts a program. */
const TASK = ["/bin/sh", "-c", "uname -a | md5sum"];

/** Children of one kind, started at once from waiting shells. */
export interface ChildrenFigures {
  /** Milliseconds from the fork to the proven identity. */
  answerMs: Distribution;
  /** Milliseconds from the fork to a short task's result. */
  resultMs: Distribution;
  /** Until the last one had its result. */
  allMs: number;
}

export interface LazyFigures extends ChildrenFigures {
  /** Pages that a guest waited for until its result, and those of them before its CPUs ran. */
  faults: Distribution;
  faultsBeforeRun: Distribution;
  /** Share of its RAM that a child was sent until its result. */
  movedShare: Distribution;
}

/** What `n` children at once cost, by how they have their memory. */
export interface ChildrenRow {
  n: number;
  mapped: ChildrenFigures;
  lazy: LazyFigures;
  lazyWorkingSet: LazyFigures;
}

/**
 * Measures children of all kinds in turn, for each number of them.
 *
 * @param samples - children of each kind that a figure is of, at least
 */
export async function benchChildren(
  pages: PagesParent,
  counts: readonly number[],
  samples: number,
  signal?: AbortSignal,
  onProgress?: (stage: string) => void,
): Promise<ChildrenRow[]> {
  await using cold = pages.lazy({ workingSet: false });
  await using warm = pages.lazy({ workingSet: true });
  // The first one shows what the others need.
  await forkAll(warm, 1, pages, signal);
  const rows: ChildrenRow[] = [];
  for (const n of counts) {
    onProgress?.(`${n} children at once`);
    const taken: Record<"mapped" | "lazy" | "warm", Sample[]> = { mapped: [], lazy: [], warm: [] };
    // In turn, so that whatever else the machine does meets all of them.
    for (let round = 0; round < Math.ceil(samples / n); round++) {
      taken.mapped.push(...(await forkAll(pages.mapped, n, undefined, signal)));
      taken.lazy.push(...(await forkAll(cold, n, pages, signal)));
      taken.warm.push(...(await forkAll(warm, n, pages, signal)));
    }
    const mapped = figures(taken.mapped);
    const lazy = lazyFigures(taken.lazy);
    const lazyWorkingSet = lazyFigures(taken.warm);
    rows.push({ n, mapped, lazy, lazyWorkingSet });
  }
  return rows;
}

interface Sample {
  answerMs: number;
  resultMs: number;
  faults: number;
  faultsBeforeRun: number;
  movedShare: number;
}

async function forkAll(
  parent: Parent,
  n: number,
  lazy: PagesParent | undefined,
  signal: AbortSignal | undefined,
): Promise<Sample[]> {
  await parent.shells.keep(n, signal);
  await parent.shells.keep(0, signal);
  const children: Child[] = [];
  const began = performance.now();
  try {
    return await Promise.all(Array.from({ length: n }, (_, index) => one(index)));
  } finally {
    await Promise.all(children.map((child) => child[Symbol.asyncDispose]()));
  }

  async function one(index: number): Promise<Sample> {
    const child = await parent.fork({ identity: { index, hostname: `pages-${index}` }, signal });
    children.push(child);
    const answerMs = performance.now() - began;
    const { code } = await child.agent.run(TASK, { signal });
    if (code !== 0) throw new Error(`The task of ${child.id} failed`);
    const resultMs = performance.now() - began;
    const stats = await lazy?.memserver.stats(child.id);
    return {
      answerMs,
      resultMs,
      faults: stats?.requests ?? 0,
      faultsBeforeRun: stats?.requestsBeforeRun ?? 0,
      movedShare: (stats?.bytes ?? 0) / child.memBytes,
    };
  }
}

function figures(samples: readonly Sample[]): ChildrenFigures {
  return {
    answerMs: distributionOf(samples.map((one) => one.answerMs)),
    resultMs: distributionOf(samples.map((one) => one.resultMs)),
    allMs: Math.max(...samples.map((one) => one.resultMs)),
  };
}

function lazyFigures(samples: readonly Sample[]): LazyFigures {
  return {
    ...figures(samples),
    faults: distributionOf(samples.map((one) => one.faults)),
    faultsBeforeRun: distributionOf(samples.map((one) => one.faultsBeforeRun)),
    movedShare: distributionOf(samples.map((one) => one.movedShare)),
  };
}
