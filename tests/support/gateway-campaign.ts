import {
  type Job,
  type JobEvent,
  type JobHeadInput,
  WebhookEvent,
  type WorkerSpecInput,
} from "../../runtime/api/mod.ts";
import type { FlurryClient, Submitted } from "../../runtime/client/mod.ts";
import { isPassing } from "../../runtime/client/transport.ts";

/** A job that a campaign submits; its tag and idempotency key are its key. */
export interface CampaignJob {
  key: string;
  inputs: readonly string[];
  /** list: as JSON; lines: as NDJSON. */
  how: "list" | "lines";
  /** What is done to it: canceled when so many of its events have been seen, removed when it has ended. */
  cancelAfter?: number | undefined;
  remove?: boolean | undefined;
  /** Not submitted again when the first submission fails. */
  once?: boolean | undefined;
  /** Called before each input is given out, and after the last one, at each submission of lines. */
  onInput?: ((index: number) => void | Promise<void>) | undefined;
}

export interface CampaignOptions {
  client: FlurryClient;
  worker: WorkerSpecInput;
  /** Told of each job. */
  webhook?: string | undefined;
  /** What the gateway has logged, for the error of a campaign that fails. */
  log?: (() => string) | undefined;
}

/** Attempts of each task. */
export const MAX_ATTEMPTS = 2;

/** Milliseconds in which a gateway may say how it is when a campaign has failed. */
const TELL_MS = 5000;

/**
 * Jobs that are submitted to gateways which are killed meanwhile, by a client that does not give up. What is
 * wrong with them is noted, and goes on.
 */
export class Campaign {
  readonly client: FlurryClient;
  /** What was done to the gateways, in order. */
  readonly faults: string[] = [];
  readonly problems: string[] = [];
  /** Jobs that were accepted, by their ids. */
  readonly jobs = new Map<string, CampaignJob>();
  /** Events of accepted jobs as they came, by the ids of the jobs. */
  readonly events = new Map<string, JobEvent[]>();
  /** What goes on while faults are made. */
  readonly background: Promise<void>[] = [];
  readonly #options: CampaignOptions;
  readonly #running = new Set<CampaignJob>();
  #seen = 0;
  #next = Promise.withResolvers<void>();

  constructor(options: CampaignOptions) {
    this.client = options.client;
    this.#options = options;
  }

  /** Runs a job from its submission to its end. */
  async run(job: CampaignJob): Promise<void> {
    this.#running.add(job);
    const id = await this.submit(job);
    if (id !== undefined) {
      await this.follow(id, job);
      if (job.remove) await this.remove(id);
    }
    this.#running.delete(job);
  }

  /**
   * Runs a job of lines in the background, and does `strike` when its submission has come to the input `at`; for the
   * number of its inputs, when it has just ended. Returns when that is done.
   */
  async strikeUpload(job: CampaignJob, at: number, strike: () => Promise<void>): Promise<void> {
    const struck = Promise.withResolvers<void>();
    let striking: Promise<void> | undefined;
    const onInput = (index: number) => {
      if (index !== at || striking) return undefined;
      striking = strike();
      struck.resolve(striking);
      return index < job.inputs.length ? striking : undefined;
    };
    const running = this.run({ ...job, how: "lines", onInput });
    this.background.push(running);
    await Promise.race([struck.promise, running.then(() => struck.promise)]);
  }

  /** Submits a job until it is accepted. Undefined when it is submitted only once, and is not there. */
  async submit(job: CampaignJob): Promise<string | undefined> {
    let found: string | undefined;
    for (;;) {
      try {
        const { job: stored } = await this.#send(job);
        if (stored.id !== (found ?? stored.id)) this.problems.push(`${job.key} is ${found} and ${stored.id}`);
        return this.#accepted(stored.id, job);
      } catch (error) {
        if (!isPassing(error)) throw error;
        found = await this.#find(job);
        if (job.once) return found && this.#accepted(found, job);
      }
    }
  }

  /** Submits a job that has been accepted once more: it is to stay one job. */
  async repeat(id: string): Promise<void> {
    const job = this.jobs.get(id)!;
    const { job: stored, replayed } = await this.again(() => this.#send({ ...job, onInput: undefined }));
    if (stored.id !== id || !replayed)
      this.problems.push(`${job.key} is ${id} and ${stored.id} (${replayed})`);
  }

  /** Follows a job's events to its end. */
  async follow(id: string, { cancelAfter }: CampaignJob): Promise<void> {
    const events = this.events.get(id)!;
    await this.again(async () => {
      for await (const event of this.client.jobs.events(id, { after: events.at(-1)?.id ?? 0 })) {
        events.push(event);
        this.#notice();
        if (events.length === cancelAfter) await this.again(() => this.client.jobs.cancel(id));
      }
    });
  }

  async remove(id: string): Promise<void> {
    await this.again(() => this.client.jobs.remove(id)).catch((error) => {
      // Removed by a request whose answer was lost.
      if (error.code !== "JOB_NOT_FOUND") throw error;
    });
  }

  /** Waits until so many more events have been seen. */
  async moreEvents(count: number): Promise<void> {
    for (const wanted = this.#seen + count; this.#seen < wanted; ) await this.#next.promise;
  }

  /** Does something that changes nothing when it is done twice, until no gateway dies of it. */
  async again<T>(work: () => Promise<T>): Promise<T> {
    for (;;) {
      try {
        return await work();
      } catch (error) {
        if (!isPassing(error)) throw error;
      }
    }
  }

  /** Runs the test for so long at most, and tells in its error what had been done. */
  async tell(what: string, ms: number, work: () => Promise<void>): Promise<void> {
    const late = Promise.withResolvers<never>();
    const timer = setTimeout(() => late.reject(new Error(`It goes on after ${ms} ms`)), ms);
    try {
      await Promise.race([work(), late.promise]);
    } catch (error) {
      const faults = this.faults.map((fault, at) => `${at + 1}. ${fault}`).join("\n");
      const message = error instanceof Error ? error.message : String(error);
      const going = [...this.#running].map((job) => this.#stateOf(job)).join("\n");
      const gateway = await this.#gatewayNow();
      throw new Error(
        [message, what, ...this.problems, "Under way:", going, "Gateway:", gateway, "Faults:", faults].join(
          "\n",
        ),
        { cause: error },
      );
    } finally {
      clearTimeout(timer);
    }
  }

  #stateOf({ key }: CampaignJob): string {
    const [id] = [...this.jobs].find(([, job]) => job.key === key) ?? ["not accepted"];
    return `${key} (${id}): ${JSON.stringify(this.events.get(id)?.at(-1))}`;
  }

  /** What the gateway says of itself and of what it has not ended; it may say nothing any more. */
  async #gatewayNow(): Promise<string> {
    const signal = AbortSignal.timeout(TELL_MS);
    // A client that waits for the next gateway hears nothing of a signal.
    const late = Promise.withResolvers<never>();
    signal.addEventListener("abort", () => late.reject(signal.reason), { once: true });
    const { jobs, hosts } = this.client;
    const open = [...this.jobs].filter(([, job]) => this.#running.has(job));
    const asked = [
      Array.fromAsync(hosts.list({ signal })),
      ...open.map(async ([id]) => {
        const { state, waiting, tasks } = await jobs.get(id, { signal });
        return { id, state, waiting, tasks };
      }),
    ];
    const told = await Promise.allSettled(asked.map((one) => Promise.race([one, late.promise])));
    const answers = told.map((one) =>
      one.status === "fulfilled" ? JSON.stringify(one.value) : `${one.reason}`,
    );
    return [...answers, this.#options.log?.() ?? ""].join("\n");
  }

  async #send(job: CampaignJob): Promise<Submitted> {
    const { worker, webhook } = this.#options;
    const head: JobHeadInput = {
      worker,
      tags: [job.key],
      retry: { maxAttempts: MAX_ATTEMPTS, backoff: { initialMs: 10 } },
      ...(webhook !== undefined && { webhook: { url: webhook, events: [...WebhookEvent.options] } }),
    };
    const options = { idempotencyKey: job.key };
    if (job.how === "lines") return this.client.jobs.submitStream(head, given(job), options);
    return this.client.jobs.submit({ ...head, tasks: { inputs: [...job.inputs] } }, options);
  }

  #accepted(id: string, job: CampaignJob): string {
    this.jobs.set(id, job);
    this.events.set(id, []);
    return id;
  }

  /** A job whose submission failed: it is there completely, or not at all. */
  async #find(job: CampaignJob): Promise<string | undefined> {
    const found = await this.again(() => Array.fromAsync(this.client.jobs.list({ tag: job.key })));
    if (found.length > 1) this.problems.push(`${job.key} is ${found.length} jobs`);
    for (const one of found) checkTotal(this.problems, one, job);
    return found[0]?.id;
  }

  #notice(): void {
    this.#seen += 1;
    this.#next.resolve();
    this.#next = Promise.withResolvers();
  }
}

export function checkTotal(problems: string[], stored: Job, job: CampaignJob): void {
  const { id, tasks } = stored;
  if (tasks.total !== job.inputs.length) {
    problems.push(`${job.key} (${id}) has ${tasks.total} tasks of ${job.inputs.length}`);
  }
}

async function* given({ inputs, onInput }: CampaignJob): AsyncGenerator<string> {
  for (const [index, input] of inputs.entries()) {
    await onInput?.(index);
    yield input;
  }
  // Not waited for: the submission ends meanwhile.
  void onInput?.(inputs.length);
}
