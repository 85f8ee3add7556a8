import type { SetAside } from "../api/mod.ts";
import type { Readiness, StoredJob } from "./ports.ts";

/** What an attempt waits for that has been claimed; undefined when its child can run. */
export type WaitsFor = "worker" | "place" | "memory" | undefined;

/** What is known here of a job's chances. */
export interface Outlook {
  /** Of each attempt of the job that is held here. */
  held: readonly WaitsFor[];
  asides: readonly SetAside[];
  ownerIsFull: boolean;
  /** Of the job's family. */
  readiness: Readiness;
  /** Whether a task of the family is held until its parent is ready. */
  isPrepared: boolean;
  /** Whether the family waits until others have been made ready. */
  waitsForTurn: boolean;
  places: { free: boolean; total: number };
}

/** Says why no task of a job runs now, for people; undefined when one does, or when none is left to run. */
export function whyWaiting({ job, family }: StoredJob, outlook: Outlook): string | undefined {
  const { queued, running, retrying } = job.tasks;
  const isOpen = job.state === "queued" || job.state === "running";
  if (!isOpen || queued + running + retrying === 0 || outlook.held.includes(undefined)) return undefined;
  const { asides, places, readiness } = outlook;
  const making = `Its worker is being made ready${readiness.step === undefined ? "" : `: ${readiness.step}`}`;
  const all = `All places of the host are taken: ${places.total}`;
  if (outlook.held.includes("memory")) return "The host has no memory free for its next task";
  if (outlook.held.includes("place")) return all;
  if (outlook.held.includes("worker")) return making;
  const host = asides.find(({ kind }) => kind === "host");
  if (host) return `The host is not used until ${host.nextTryAt}: ${host.reason}`;
  const worker = asides.find(({ kind, id }) => kind === "worker" && id === family);
  if (worker) return `Its worker is not used until ${worker.nextTryAt}: ${worker.reason}`;
  if (queued + running === 0) return "Its tasks wait until they are tried again";
  if (outlook.ownerIsFull) return "Its key has as many running tasks as it may have";
  if (outlook.isPrepared) return making;
  if (outlook.waitsForTurn) return "Other workers are made ready before its own";
  return places.free ? undefined : all;
}
