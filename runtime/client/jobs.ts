import { FlurryError } from "../../errors/errors.ts";
import {
  type Artifact,
  ArtifactPage,
  type Delivery,
  DeliveryPage,
  Job,
  type JobEvent,
  type JobHeadInput,
  JobPage,
  type JobState,
  type JobSubmitInput,
  type LogChunk,
  Task,
  TaskPage,
  type TaskResult,
  type TaskState,
  Validated,
} from "../api/mod.ts";
import {
  type EventsOptions,
  eventsOf,
  hasEnded,
  jobPath,
  type LogsOptions,
  logsOf,
  type ResultsOptions,
  resultsOf,
} from "./job-streams.ts";
import { ndjsonBody } from "./ndjson.ts";
import { itemsOf } from "./pages.ts";
import { streamOf } from "./streams.ts";
import type { Transport } from "./transport.ts";

export interface CallOptions {
  signal?: AbortSignal | undefined;
}

export interface SubmitOptions extends CallOptions {
  /**
   * The gateway makes one job of all submissions with the same key within 24 h.
   *
   * @default a new one, so that a submission that is sent again stays one job
   */
  idempotencyKey?: string | undefined;
}

/** A job as it was accepted. */
export interface Submitted {
  job: Job;
  /** Whether it is the job of an earlier submission with the same idempotency key. */
  replayed: boolean;
}

export interface ListOptions extends CallOptions {
  /** Items that are fetched at a time, at most 1000. @default 100 */
  pageSize?: number | undefined;
}

/** Content of an artifact, or a part of it. */
export interface ArtifactContent {
  stream: ReadableStream<Uint8Array>;
  /** Bytes of the whole artifact; undefined when the answer does not tell. */
  size: number | undefined;
  /** Changes with the content. */
  etag: string;
}

/** Jobs of a gateway. Every method throws FlurryError: the gateway's own codes, GATEWAY_UNREACHABLE, GATEWAY_FAILED, ABORTED. */
export class JobsApi {
  readonly #transport: Transport;

  constructor(transport: Transport) {
    this.#transport = transport;
  }

  /** Submits a job. It is sent again, with the same idempotency key, when the connection is lost. */
  async submit(job: JobSubmitInput, { idempotencyKey, signal }: SubmitOptions = {}): Promise<Submitted> {
    const response = await this.#transport.send("/v1/jobs", {
      method: "POST",
      json: job,
      headers: { "idempotency-key": idempotencyKey ?? crypto.randomUUID() },
      repeatable: true,
      signal,
    });
    return this.#submitted(response, signal);
  }

  /**
   * Submits a job with one task for each input, of which there may be a million: they are taken from
   * `inputs` as the gateway reads them. It is sent once; with an idempotency key of your own it is safe to
   * do it again with the same inputs.
   *
   * @throws whatever `inputs` throws; no job is made then
   */
  async submitStream(
    head: JobHeadInput,
    inputs: AsyncIterable<unknown> | Iterable<unknown>,
    { idempotencyKey, signal }: SubmitOptions = {},
  ): Promise<Submitted> {
    let broken: { error: unknown } | undefined;
    const stream = ndjsonBody(head, inputs, (error) => {
      broken = { error };
    });
    let response: Response;
    try {
      response = await this.#transport.send("/v1/jobs", {
        method: "POST",
        stream,
        headers: {
          "content-type": "application/x-ndjson",
          "idempotency-key": idempotencyKey ?? crypto.randomUUID(),
        },
        signal,
      });
    } catch (error) {
      throw broken ? broken.error : error;
    }
    return this.#submitted(response, signal);
  }

  /** Checks a job as `submit` does, and stores nothing. */
  validate(job: JobSubmitInput, { signal }: CallOptions = {}): Promise<Validated> {
    const options = { method: "POST" as const, json: job, repeatable: true, signal };
    return this.#transport.json("/v1/jobs:validate", Validated, options);
  }

  get(id: string, { signal }: CallOptions = {}): Promise<Job> {
    return this.#transport.json(jobPath(id), Job, { signal });
  }

  /** Newest first. */
  list({
    state,
    tag,
    pageSize,
    signal,
  }: ListOptions & { state?: JobState | undefined; tag?: string | undefined } = {}): AsyncGenerator<Job> {
    return itemsOf((cursor) =>
      this.#transport.json("/v1/jobs", JobPage, {
        query: { state, tag, limit: pageSize, cursor },
        signal,
      }),
    );
  }

  /** By index. */
  tasks(
    id: string,
    { state, pageSize, signal }: ListOptions & { state?: TaskState | undefined } = {},
  ): AsyncGenerator<Task> {
    return itemsOf((cursor) =>
      this.#transport.json(jobPath(id, "/tasks"), TaskPage, {
        query: { state, limit: pageSize, cursor },
        signal,
      }),
    );
  }

  task(id: string, index: number, { signal }: CallOptions = {}): Promise<Task> {
    return this.#transport.json(jobPath(id, `/tasks/${index}`), Task, { signal });
  }

  /** Ends a job: what waits is canceled, what runs is stopped. A job that has ended stays as it is. */
  cancel(id: string, { signal }: CallOptions = {}): Promise<Job> {
    const options = { method: "POST" as const, repeatable: true, signal };
    return this.#transport.json(jobPath(id, "/cancel"), Job, options);
  }

  /** Queues failed and canceled tasks of an ended job again, or only the one of `index`. */
  retry(id: string, { index, signal }: CallOptions & { index?: number | undefined } = {}): Promise<Job> {
    const path = index === undefined ? "/retry" : `/tasks/${index}/retry`;
    return this.#transport.json(jobPath(id, path), Job, { method: "POST", signal });
  }

  /** Deletes an ended job with its results, logs and artifacts. */
  async remove(id: string, { signal }: CallOptions = {}): Promise<void> {
    const response = await this.#transport.send(jobPath(id), { method: "DELETE", signal });
    await response.body?.cancel();
  }

  /**
   * What happens to a job and its tasks, from the first event (or after `after`) until the job has ended, or
   * without `follow` what has happened up to now. A connection that is lost is made again, and no event is given twice.
   */
  events(id: string, options: EventsOptions = {}): AsyncGenerator<JobEvent, void, undefined> {
    return eventsOf(this.#transport, id, options);
  }

  /** How tasks ended. Without `follow` those that have; in the order of `index` up to the first that has not. */
  results(id: string, options: ResultsOptions = {}): AsyncGenerator<TaskResult, void, undefined> {
    return resultsOf(this.#transport, id, options);
  }

  /** What tasks printed, in pieces as it was recorded. */
  logs(id: string, options: LogsOptions = {}): AsyncGenerator<LogChunk, void, undefined> {
    return logsOf(this.#transport, id, options);
  }

  /** Waits until a job has ended. @returns the job as it is then */
  async wait(
    id: string,
    { signal, onEvent }: CallOptions & { onEvent?: (event: JobEvent) => void } = {},
  ): Promise<Job> {
    let after = 0;
    for (;;) {
      for await (const event of this.events(id, { after, signal })) {
        after = event.id;
        onEvent?.(event);
      }
      const job = await this.get(id, { signal });
      // Its retry may have begun meanwhile.
      if (hasEnded(job)) return job;
    }
  }

  /** Files that tasks left in /out. */
  artifacts(
    id: string,
    { task, pageSize, signal }: ListOptions & { task?: number | undefined } = {},
  ): AsyncGenerator<Artifact> {
    return itemsOf((cursor) =>
      this.#transport.json(jobPath(id, "/artifacts"), ArtifactPage, {
        query: { task, limit: pageSize, cursor },
        signal,
      }),
    );
  }

  /**
   * Content of a file.
   *
   * @param range - bytes `start` to before `end`; without `end` to the last
   * @throws FlurryError ARTIFACT_NOT_FOUND, RANGE_NOT_SATISFIABLE …; the stream itself fails with
   * GATEWAY_UNREACHABLE when it is cut off
   */
  async artifact(
    id: string,
    task: number,
    path: string,
    { range, signal }: CallOptions & { range?: { start: number; end?: number } } = {},
  ): Promise<ArtifactContent> {
    const segments = path.split("/");
    if (segments.some((segment) => segment === "" || segment === "." || segment === "..")) {
      throw new FlurryError(
        "BAD_ARGUMENT",
        `Cannot ask for the artifact "${path}": it is no path below /out`,
      );
    }
    const rest = `/artifacts/${task}/${segments.map(encodeURIComponent).join("/")}`;
    const last = range?.end === undefined ? "" : range.end - 1;
    const headers = range && { range: `bytes=${range.start}-${last}` };
    const response = await this.#transport.send(jobPath(id, rest), { ...(headers && { headers }), signal });
    if (range && response.status !== 206) {
      await response.body?.cancel();
      throw new FlurryError("GATEWAY_FAILED", `Asked for a part of "${path}", the gateway sent all of it`);
    }
    const total =
      /\/(\d+)$/.exec(response.headers.get("content-range") ?? "")?.[1] ??
      response.headers.get("content-length");
    return {
      stream: streamOf(this.#transport.body(response, { signal })),
      size: total === null ? undefined : Number(total),
      etag: response.headers.get("etag") ?? "",
    };
  }

  /** Messages to the job's webhook. */
  deliveries(id: string, { pageSize, signal }: ListOptions = {}): AsyncGenerator<Delivery> {
    return itemsOf((cursor) =>
      this.#transport.json(jobPath(id, "/deliveries"), DeliveryPage, {
        query: { limit: pageSize, cursor },
        signal,
      }),
    );
  }

  async #submitted(response: Response, signal: AbortSignal | undefined): Promise<Submitted> {
    const replayed = response.headers.get("idempotent-replayed") === "true";
    return { job: await this.#transport.read(response, Job, signal), replayed };
  }
}
