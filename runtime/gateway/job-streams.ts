import type { JobEvent, LogChunk } from "../api/mod.ts";
import type { ResultQuery, StoredJob } from "../jobs/ports.ts";
import { isStillKnown } from "./auth.ts";
import type { GatewayContext, Principal } from "./context.ts";
import type { Pieces } from "./paged-body.ts";
import { Watch } from "./watch.ts";

/** Entries that are read from the store at once: all that a stream holds. A piece of a log may have 64 KiB. */
const PAGE = 500;
const LOG_PAGE = 50;
/** Longest silence of a stream. Proxies and Bun cut those that say nothing. */
export const HEARTBEAT_MS = 5000;

/** Whether a job is in a state that only a retry leaves. */
export function hasEnded({ job }: StoredJob): boolean {
  return job.state === "succeeded" || job.state === "failed" || job.state === "canceled";
}

/** Which job is read, and by whom. */
export interface Reading {
  id: string;
  reader: Pick<Principal, "owner">;
}

/** What a stream of a job is made of. */
interface Source<T> {
  kind: "events" | "logs" | "results";
  /** Subscribes to what may bring more. */
  subscribe: (listener: (id: string) => void) => Disposable;
  /** The entries after those that were read before; none when there are no more now. */
  read: () => Promise<T[]>;
  /** All entries of a page, as they are sent. */
  format: (page: T[]) => string;
  /** Sent at once: Bun keeps even the head of an answer back until there is something of its body. */
  greeting?: string;
  /** Sent in a silence. @default nothing */
  heartbeat?: string;
  /** Whether to wait for more until the job has ended. */
  follow: boolean;
}

const NDJSON_SILENCE = { greeting: "\n", heartbeat: "\n" };

/** The job's events from after `after`, as Server-Sent Events. */
export function eventStream(
  context: GatewayContext,
  reading: Reading,
  query: { after: number; follow: boolean },
): Pieces {
  const { id } = reading;
  let last = query.after;
  const { jobs } = context.store;
  return follow<JobEvent>(context, reading, {
    kind: "events",
    subscribe: (listener) => jobs.onChange(listener),
    read: async () => {
      const page = await jobs.events(id, last, PAGE);
      last = page.at(-1)?.id ?? last;
      return page;
    },
    format: (page) => page.map(sseOf).join(""),
    greeting: "retry: 1000\n\n",
    heartbeat: ":\n\n",
    follow: query.follow,
  });
}

/** Results as lines of JSON. */
export function resultStream(
  context: GatewayContext,
  reading: Reading,
  query: { order: ResultQuery["order"]; after: number | undefined; follow: boolean },
): Pieces {
  const { id } = reading;
  let { after } = query;
  const { jobs } = context.store;
  return follow(context, reading, {
    kind: "results",
    subscribe: (listener) => jobs.onChange(listener),
    read: async () => {
      const page = await jobs.results(id, { order: query.order, after, limit: PAGE });
      after = page.next;
      return page.items;
    },
    format: linesOf,
    ...(query.follow ? NDJSON_SILENCE : {}),
    follow: query.follow,
  });
}

/** What tasks printed: as lines of JSON, or as they printed it. */
export function logStream(
  context: GatewayContext,
  reading: Reading,
  query: { task: number | undefined; after: number; follow: boolean; text: boolean },
): Pieces {
  const { id } = reading;
  let last = query.after;
  const { jobs, logs } = context.store;
  return follow<LogChunk>(context, reading, {
    kind: "logs",
    subscribe: (listener) => {
      const both = new DisposableStack();
      both.use(logs.onAppend(listener));
      // The end of the job is no append.
      both.use(jobs.onChange(listener));
      return both;
    },
    read: async () => {
      const page = await logs.read(id, { task: query.task, after: last, limit: LOG_PAGE });
      last = page.at(-1)?.id ?? last;
      return page;
    },
    format: query.text ? (page) => page.map(({ text }) => text).join("") : linesOf,
    // Text has nothing that says nothing: its head comes with what is printed first.
    ...(query.follow && !query.text ? NDJSON_SILENCE : {}),
    follow: query.follow,
  });
}

function follow<T>(context: GatewayContext, { id, reader }: Reading, source: Source<T>): Pieces {
  const { pace } = context;
  return async function* (signal) {
    using _counted = context.metrics.stream(source.kind);
    using _open = pace.open();
    using watch = new Watch(source.subscribe, id);
    const { jobs } = context.store;
    if (source.greeting !== undefined) yield source.greeting;
    while (!signal.aborted && (await isStillKnown(context, reader))) {
      const lookedAt = performance.now();
      // Asked before the entries are read: what a job that has ended leaves is all there.
      const stored = source.follow ? await jobs.get(id) : undefined;
      const over = stored === undefined || hasEnded(stored);
      const page = await source.read();
      if (page.length > 0) {
        yield source.format(page);
        continue;
      }
      if (over) return;
      const changed = await watch.next(HEARTBEAT_MS, signal);
      if (!changed && source.heartbeat !== undefined && !signal.aborted) yield source.heartbeat;
      await pace.wait(lookedAt, signal);
    }
  };
}

function sseOf(event: JobEvent): string {
  return `id: ${event.id}\nevent: ${event.type}\ndata: ${JSON.stringify(event)}\n\n`;
}

function linesOf(page: readonly unknown[]): string {
  return page.map((entry) => `${JSON.stringify(entry)}\n`).join("");
}
