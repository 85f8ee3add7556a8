import { Job, JobEvent, LogChunk, TaskResult } from "../api/mod.ts";
import { follow } from "./follow.ts";
import { foreignAnswer } from "./gateway-error.ts";
import { parseEvents } from "./sse.ts";
import { lines, parsed } from "./streams.ts";
import type { Transport } from "./transport.ts";

export interface EventsOptions {
  /** Only events after this one. @default 0, from the first */
  after?: number | undefined;
  /** Wait for more until the job has ended. @default true */
  follow?: boolean | undefined;
  signal?: AbortSignal | undefined;
}

export interface ResultsOptions {
  /** `index`: as submitted; `completion`: as they ended. @default "index" */
  order?: "index" | "completion" | undefined;
  /** Wait for those that have not ended yet. @default false */
  follow?: boolean | undefined;
  signal?: AbortSignal | undefined;
}

export interface LogsOptions {
  /** Only of this task. */
  task?: number | undefined;
  /** Only chunks after this one. @default 0, from the first */
  after?: number | undefined;
  /** Wait for what is printed until the job has ended. @default false */
  follow?: boolean | undefined;
  signal?: AbortSignal | undefined;
}

/** Path of a job, or of something of it. */
export function jobPath(id: string, rest = ""): string {
  return `/v1/jobs/${encodeURIComponent(id)}${rest}`;
}

/** Whether a job is in a state that it leaves only by a retry. */
export function hasEnded(job: Pick<Job, "state">): boolean {
  return job.state === "succeeded" || job.state === "failed" || job.state === "canceled";
}

/** Events of a job, until it has ended or up to now, each once, in order, over as many connections as that takes. */
export function eventsOf(
  transport: Transport,
  id: string,
  { after = 0, follow: wait = true, signal }: EventsOptions,
): AsyncGenerator<JobEvent, void, undefined> {
  let last = after;
  let over = false;
  const ending = new Ending(transport, id, signal);
  return follow<JobEvent>({
    async *open() {
      const headers = {
        accept: "text/event-stream",
        ...(last > 0 && { "last-event-id": String(last) }),
      };
      const response = await transport.send(jobPath(id, "/events"), {
        headers,
        query: { follow: wait },
        signal,
      });
      // Any text is an event stream without events: waiting for some would have no end.
      if (!/^text\/event-stream\b/.test(response.headers.get("content-type") ?? "")) {
        await response.body?.cancel();
        throw foreignAnswer(response, "not an event stream");
      }
      for await (const { data } of parseEvents(transport.body(response, { signal, live: wait }))) {
        const event = parsed(JobEvent, data, "event");
        // A stream that was taken up too early repeats: nobody sees it.
        if (event.id > last) yield event;
      }
    },
    passed(event) {
      last = event.id;
      over = isLast(event);
    },
    complete: (gotAny) => !wait || (gotAny && over) || ending.isComplete(gotAny),
    signal: transport.signalOf(signal),
  });
}

/** Whether this event tells that the job has ended. */
export function isLast({ type }: JobEvent): boolean {
  return type === "job.succeeded" || type === "job.failed" || type === "job.canceled";
}

/** Results of a job's tasks, each once. */
export async function* resultsOf(
  transport: Transport,
  id: string,
  { order = "index", follow: wait = false, signal }: ResultsOptions,
): AsyncGenerator<TaskResult, void, undefined> {
  const { tasks } = await transport.json(jobPath(id), Job, { signal });
  let passed = 0;
  let from = 0;
  let after = 0;
  yield* follow<TaskResult>({
    async *open() {
      const query = { order, follow: wait, ...(order === "index" ? { from } : { after }) };
      const response = await transport.send(jobPath(id, "/results"), { query, signal });
      yield* lines(TaskResult, "result", transport.body(response, { signal, live: wait }));
    },
    passed({ index, ended }) {
      passed += 1;
      from = index + 1;
      after = ended;
    },
    complete: () => !wait || passed >= tasks.total,
    signal: transport.signalOf(signal),
  });
}

/** What a job's tasks printed, each piece once, in order. */
export function logsOf(
  transport: Transport,
  id: string,
  { task, after = 0, follow: wait = false, signal }: LogsOptions,
): AsyncGenerator<LogChunk, void, undefined> {
  let last = after;
  const ending = new Ending(transport, id, signal);
  return follow<LogChunk>({
    async *open() {
      const query = { task, after: last, follow: wait };
      const response = await transport.send(jobPath(id, "/logs"), { query, signal });
      for await (const chunk of lines(
        LogChunk,
        "piece of a log",
        transport.body(response, { signal, live: wait }),
      )) {
        if (chunk.id > last) yield chunk;
      }
    },
    passed(chunk) {
      last = chunk.id;
    },
    complete: (gotAny) => !wait || ending.isComplete(gotAny),
    signal: transport.signalOf(signal),
  });
}

/**
 * Tells the end of a job's stream from a stream that ended for another reason, such as the gateway's end:
 * it is over when a connection brought nothing although the job had ended before.
 */
class Ending {
  readonly #ended: () => Promise<boolean>;
  #known = false;

  constructor(transport: Transport, id: string, signal: AbortSignal | undefined) {
    this.#ended = async () => hasEnded(await transport.json(jobPath(id), Job, { signal }));
  }

  async isComplete(gotAny: boolean): Promise<boolean> {
    if (!gotAny && this.#known) return true;
    this.#known = await this.#ended();
    return false;
  }
}
