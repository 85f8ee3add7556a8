import { isDeepStrictEqual } from "node:util";
import { codeOf } from "../../errors/errors.ts";
import type { JobEvent, TaskCounts, TaskResult } from "../../runtime/api/mod.ts";
import { type Campaign, type CampaignJob, checkTotal, MAX_ATTEMPTS } from "./gateway-campaign.ts";
import type { Received } from "./gateway-webhooks.ts";
import { expectedOf } from "./gateway-work.ts";

/** Looks at all jobs of a campaign when it is over, over HTTP. What is wrong is among its problems. */
export async function checkCampaign(campaign: Campaign): Promise<void> {
  const { client, problems, jobs } = campaign;
  const listed = await Array.fromAsync(client.jobs.list({ pageSize: 7 }));
  const keys = listed.map(({ tags }) => tags[0]!);
  if (new Set(keys).size !== keys.length) problems.push(`jobs are there twice: ${keys.sort().join(" ")}`);
  const kept = [...jobs].filter(([, { remove }]) => !remove);
  for (const stored of listed) {
    const job = jobs.get(stored.id);
    if (job === undefined || job.remove) problems.push(`${stored.id} (${stored.tags}) should not be there`);
    else checkTotal(problems, stored, job);
  }
  for (const [id, job] of jobs) {
    if (job.remove) await checkRemoved(campaign, id);
  }
  for (const [id, job] of kept) await new JobCheck(campaign, id, job).run();
}

async function checkRemoved({ client, problems }: Campaign, id: string): Promise<void> {
  try {
    await client.jobs.get(id);
    problems.push(`${id} was removed and is there`);
  } catch (error) {
    if (codeOf(error) !== "JOB_NOT_FOUND") throw error;
  }
}

class JobCheck {
  readonly #campaign: Campaign;
  readonly #id: string;
  readonly #job: CampaignJob;

  constructor(campaign: Campaign, id: string, job: CampaignJob) {
    this.#campaign = campaign;
    this.#id = id;
    this.#job = job;
  }

  async run(): Promise<void> {
    const { client } = this.#campaign;
    const results = await Array.fromAsync(client.jobs.results(this.#id, { order: "completion" }));
    const inOrder = await Array.fromAsync(client.jobs.results(this.#id));
    this.#same(
      "results in order",
      inOrder,
      results.toSorted((a, b) => a.index - b.index),
    );
    this.#same(
      "indexes of results",
      inOrder.map(({ index }) => index),
      this.#job.inputs.map((_, index) => index),
    );
    for (const result of results) this.#checkResult(result);
    await this.#checkJob(results);
    await this.#checkEvents(results);
    await this.#checkTasks(results);
    await this.#checkArtifacts(results);
    await this.#checkLogs(results);
  }

  #checkResult({ index, ...result }: TaskResult): void {
    if (this.#wasCanceled(result)) return;
    const { attempt, exitCode, state, stdout, file } = this.#expected(index);
    const wanted = { attempt, exitCode, state, stdout, artifacts: file ? 1 : 0 };
    const { error, stdoutTruncated } = result;
    this.#same(
      `result of task ${index}`,
      { ...wanted, ...pick(result, wanted), error, stdoutTruncated },
      {
        ...wanted,
        error: undefined,
        stdoutTruncated: false,
      },
    );
  }

  async #checkJob(results: readonly TaskResult[]): Promise<void> {
    const job = await this.#campaign.client.jobs.get(this.#id);
    const counts: TaskCounts = {
      total: this.#job.inputs.length,
      ...{ queued: 0, running: 0, retrying: 0, succeeded: 0, failed: 0, canceled: 0 },
    };
    for (const { state } of results) counts[state] += 1;
    this.#same("counts", job.tasks, counts);
    const canceled = counts.canceled > 0;
    if (canceled && this.#job.cancelAfter === undefined) this.#wrong("tasks were canceled", counts);
    const state = canceled ? "canceled" : counts.failed > 0 ? "failed" : "succeeded";
    // A job that is canceled when all of its tasks have ended may be called either.
    if (job.state !== state && this.#job.cancelAfter === undefined) this.#wrong("state", [job.state, state]);
  }

  async #checkEvents(results: readonly TaskResult[]): Promise<void> {
    const { client, events: followed } = this.#campaign;
    const events = await Array.fromAsync(client.jobs.events(this.#id, { follow: false }));
    this.#same("events as they were followed", followed.get(this.#id), events);
    const ids = events.map(({ id }) => id);
    this.#same(
      "ids of events",
      ids,
      [...new Set(ids)].toSorted((a, b) => a - b),
    );
    const jobEvents = events.filter(({ task }) => task === undefined).map(({ type }) => type);
    const { state } = await client.jobs.get(this.#id);
    const expected = ["job.queued", "job.running", "job.canceling", `job.${state}`];
    const without = jobEvents.includes("job.canceling") ? "" : "job.canceling";
    this.#same(
      "events of the job",
      jobEvents,
      expected.filter((type) => type !== without),
    );
    if (events.at(-1)?.type !== `job.${state}`) this.#wrong("last event", events.at(-1));
    const byTask = Map.groupBy(events, ({ task }) => task ?? -1);
    for (const result of results) this.#checkTaskEvents(result, byTask.get(result.index) ?? []);
  }

  #checkTaskEvents(result: TaskResult, events: readonly JobEvent[]): void {
    const { index, state, attempt } = result;
    const ends = events.filter(({ type }) => /^task\.(succeeded|failed|canceled)$/.test(type));
    this.#same(
      `ends of task ${index}`,
      ends.map(({ type }) => type),
      [`task.${state}`],
    );
    if (events.at(-1) !== ends[0]) this.#wrong(`task ${index} went on after its end`, events);
    if (this.#wasCanceled(result)) return;
    const retries = events.filter(({ type }) => type === "task.retrying").map((event) => event.attempt);
    this.#same(`attempts that task ${index} failed of`, retries, numbers(attempt - 1));
    // What the infrastructure failed of is done again with the same number.
    const begun = events.filter(({ type }) => type === "task.running").map((event) => event.attempt);
    this.#same(`attempts of task ${index}`, [...new Set(begun)], numbers(attempt));
    const queued = events.filter(({ type }) => type === "task.queued");
    this.#same(`attempts of task ${index} that were taken up again`, queued.length, begun.length - attempt);
  }

  async #checkTasks(results: readonly TaskResult[]): Promise<void> {
    const tasks = await Array.fromAsync(this.#campaign.client.jobs.tasks(this.#id, { pageSize: 1000 }));
    const ends = new Map(results.map((result) => [result.index, result]));
    for (const { index, input, state, attempt } of tasks) {
      const end = ends.get(index);
      this.#same(
        `task ${index}`,
        [input, state, attempt],
        [this.#job.inputs[index], end?.state, end?.attempt],
      );
    }
    this.#same("number of tasks", tasks.length, this.#job.inputs.length);
  }

  async #checkArtifacts(results: readonly TaskResult[]): Promise<void> {
    const { client } = this.#campaign;
    const artifacts = await Array.fromAsync(client.jobs.artifacts(this.#id, { pageSize: 1000 }));
    const byTask = Map.groupBy(artifacts, ({ task }) => task);
    for (const result of results) {
      const { file } = this.#expected(result.index);
      const expected = file && !this.#wasCanceled(result) ? [{ path: "sub/file", ...file }] : [];
      const found = (byTask.get(result.index) ?? []).map(({ path, size, sha256 }) => ({
        path,
        size,
        sha256,
      }));
      this.#same(`artifacts of task ${result.index}`, found, expected);
    }
    const [first] = artifacts;
    if (first === undefined) return;
    const { stream } = await client.jobs.artifact(this.#id, first.task, first.path);
    const bytes = await new Response(stream).arrayBuffer();
    const digest = Buffer.from(await crypto.subtle.digest("SHA-256", bytes)).toString("hex");
    this.#same(`content of ${first.task}/${first.path}`, digest, first.sha256);
  }

  /** What an attempt printed that was lost is there too: nobody knows that it will be lost. */
  async #checkLogs(results: readonly TaskResult[]): Promise<void> {
    const chunks = await Array.fromAsync(this.#campaign.client.jobs.logs(this.#id));
    const byTask = Map.groupBy(chunks, ({ task }) => task);
    for (const result of results) {
      if (this.#wasCanceled(result)) continue;
      const own = (byTask.get(result.index) ?? []).filter(({ attempt }) => attempt === result.attempt);
      const text = own.map((chunk) => chunk.text).join("");
      if (!text.endsWith(result.stdout)) this.#wrong(`log of task ${result.index}`, text);
    }
  }

  #wasCanceled({ state }: Pick<TaskResult, "state">): boolean {
    return state === "canceled";
  }

  #expected(index: number) {
    return expectedOf(index, this.#job.inputs[index] ?? "", MAX_ATTEMPTS);
  }

  #same(what: string, found: unknown, expected: unknown): void {
    if (!isDeepStrictEqual(found, expected)) this.#wrong(what, { found, expected });
  }

  #wrong(what: string, value: unknown): void {
    const shown = JSON.stringify(value)?.slice(0, 2000);
    this.#campaign.problems.push(`${this.#job.key} (${this.#id}): ${what}: ${shown}`);
  }
}

/**
 * Looks at what a webhook was told: of each event of each job at least once, and always by the same id. Each
 * delivery of the gateway is to be over.
 */
export async function checkDeliveries(campaign: Campaign, received: readonly Received[]): Promise<void> {
  const { client, problems, jobs } = campaign;
  const told = new Map<string, Set<string>>();
  for (const { body, headers } of received) {
    const { type, data } = JSON.parse(body);
    const event = `${data.id} ${type}`;
    told.set(event, (told.get(event) ?? new Set()).add(String(headers["webhook-id"])));
  }
  for (const [event, ids] of told) {
    if (ids.size !== 1) problems.push(`${event} was told with the ids ${[...ids].join(", ")}`);
  }
  for (const [id, { remove }] of jobs) {
    if (remove) continue;
    const { state } = await client.jobs.get(id);
    for (const type of ["job.running", `job.${state}`]) {
      if (!told.has(`${id} ${type}`)) problems.push(`nobody was told of ${type} of ${id}`);
    }
    for (const delivery of await Array.fromAsync(client.jobs.deliveries(id))) {
      const ids = told.get(`${id} ${delivery.event}`) ?? new Set();
      if (!ids.has(delivery.id))
        problems.push(`${delivery.event} of ${id} is ${delivery.id}, not ${[...ids]}`);
      if (delivery.state !== "delivered") problems.push(`${delivery.event} of ${id} is ${delivery.state}`);
    }
  }
}

function numbers(last: number): number[] {
  return Array.from({ length: last }, (_, at) => at + 1);
}

function pick(value: object, keys: object): Record<string, unknown> {
  return Object.fromEntries(Object.keys(keys).map((key) => [key, Reflect.get(value, key)]));
}
