import {
  ScheduledRun,
  WorkerLogPage,
  type WorkerLogRecord,
  WorkerPage,
  type WorkerSpecInput,
  WorkerStatus,
  WorkerVersion,
} from "../api/mod.ts";
import type { CallOptions, ListOptions } from "./jobs.ts";
import { itemsOf } from "./pages.ts";
import type { Transport } from "./transport.ts";

interface StateQuery {
  version?: number | undefined;
  after?: string | undefined;
  waitMs?: number | undefined;
}

/** Deployed workers of a gateway. */
export class WorkersApi {
  readonly #transport: Transport;

  constructor(transport: Transport) {
    this.#transport = transport;
  }

  /** Deploys a worker: a new version becomes the current one, unless the current one is equal. */
  put(name: string, spec: WorkerSpecInput, { signal }: CallOptions = {}): Promise<WorkerVersion> {
    return this.#transport.json(pathOf(name), WorkerVersion, { method: "PUT", json: spec, signal });
  }

  /** @param version - the current one by default */
  get(
    name: string,
    { version, signal }: CallOptions & { version?: number | undefined } = {},
  ): Promise<WorkerVersion> {
    return this.#transport.json(pathOf(name), WorkerVersion, { query: { version }, signal });
  }

  /**
   * How far a version is.
   *
   * @param options.version - the current one by default
   * @param options.after - `seen` of the answer before: waits for something else
   * @param options.waitMs - how long to wait for it, at most 30000
   */
  state(
    name: string,
    { version, after, waitMs, signal }: CallOptions & StateQuery = {},
  ): Promise<WorkerStatus> {
    const query = { version, after, waitMs };
    return this.#transport.json(pathOf(name, "/state"), WorkerStatus, { query, signal });
  }

  /** Current versions, by name, without their files. */
  list({ pageSize, signal }: ListOptions = {}): AsyncGenerator<WorkerVersion> {
    return itemsOf((cursor) =>
      this.#transport.json("/v1/workers", WorkerPage, { query: { limit: pageSize, cursor }, signal }),
    );
  }

  /** Newest first, without their files. */
  versions(name: string, { pageSize, signal }: ListOptions = {}): AsyncGenerator<WorkerVersion> {
    return itemsOf((cursor) =>
      this.#transport.json(pathOf(name, "/versions"), WorkerPage, {
        query: { limit: pageSize, cursor },
        signal,
      }),
    );
  }

  /** Sets the version that jobs get when they name none. */
  setCurrent(name: string, version: number, { signal }: CallOptions = {}): Promise<WorkerVersion> {
    const options = { method: "PUT" as const, json: { version }, signal };
    return this.#transport.json(pathOf(name, "/current"), WorkerVersion, options);
  }

  /**
   * What a JS worker has printed of late while it answered requests.
   *
   * @param options.after - only records after this id
   * @param options.waitMs - how long to wait for one when there is none
   */
  async logs(
    name: string,
    { after, waitMs, signal }: CallOptions & { after?: number; waitMs?: number } = {},
  ): Promise<WorkerLogRecord[]> {
    const { items } = await this.#transport.json(pathOf(name, "/logs"), WorkerLogPage, {
      query: { after, waitMs },
      signal,
    });
    return items;
  }

  /**
   * Calls `scheduled()` of a JS worker now. Resolves when that is over, also if it has failed: see `error`.
   *
   * @param options.cron - what the event says. @default the worker's first one
   */
  trigger(
    name: string,
    { cron, signal }: CallOptions & { cron?: string | undefined } = {},
  ): Promise<ScheduledRun> {
    const json = cron === undefined ? {} : { cron };
    return this.#transport.json(pathOf(name, "/scheduled"), ScheduledRun, { method: "POST", json, signal });
  }

  /** Takes a worker away; its jobs go on. */
  async remove(name: string, { signal }: CallOptions = {}): Promise<void> {
    const response = await this.#transport.send(pathOf(name), { method: "DELETE", signal });
    await response.body?.cancel();
  }
}

function pathOf(name: string, rest = ""): string {
  return `/v1/workers/${encodeURIComponent(name)}${rest}`;
}
