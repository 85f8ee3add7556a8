import { mkdtemp, rm } from "node:fs/promises";
import http from "node:http";
import https from "node:https";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Delivery, WorkerSpec } from "../../runtime/api/mod.ts";
import { WebhookGuard } from "../../runtime/gateway/webhook-guard.ts";
import { WebhookSender, type WebhookSenderOptions } from "../../runtime/gateway/webhook-sender.ts";
import { familyOf } from "../../runtime/jobs/family.ts";
import type { DeliveryStore, Store } from "../../runtime/jobs/ports.ts";
import { openStore } from "../../runtime/store/open.ts";
import { testCertificate, testKey } from "./gateway-certificate.ts";
import { ManualClock } from "./jobs-clock.ts";

export interface Received {
  path: string;
  headers: http.IncomingHttpHeaders;
  body: string;
}

type Answer = (response: http.ServerResponse, nth: number) => void;

/** Answers with a status. */
export function status(code: number, headers: Record<string, string> = {}): Answer {
  return (response) => response.writeHead(code, headers).end();
}

/** A server on loopback that gets webhooks. */
export class Receiver implements AsyncDisposable {
  readonly received: Received[] = [];
  readonly #server: http.Server | https.Server;
  #arrived = Promise.withResolvers<void>();

  private constructor(answer: Answer, secure: boolean) {
    const listener = (request: http.IncomingMessage, response: http.ServerResponse) => {
      const parts: Buffer[] = [];
      request.on("data", (part: Buffer) => parts.push(part));
      request.on("end", () => {
        const { url: path = "", headers } = request;
        this.received.push({ path, headers, body: Buffer.concat(parts).toString() });
        answer(response, this.received.length);
        this.#arrived.resolve();
        this.#arrived = Promise.withResolvers();
      });
    };
    this.#server = secure
      ? https.createServer({ key: testKey, cert: testCertificate }, listener)
      : http.createServer(listener);
  }

  static async open(answer: Answer, options: { secure?: boolean } = {}): Promise<Receiver> {
    const receiver = new Receiver(answer, options.secure ?? false);
    const { promise, resolve } = Promise.withResolvers<void>();
    receiver.#server.listen(0, "127.0.0.1", resolve);
    await promise;
    return receiver;
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  get host(): string {
    return `127.0.0.1:${this.port}`;
  }

  /** Waits until so many requests have come. */
  async count(wanted: number): Promise<void> {
    while (this.received.length < wanted) await this.#arrived.promise;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#server.close(() => resolve());
    this.#server.closeAllConnections();
    await promise;
  }
}

/** Deliveries of a real store; tells when an attempt has been noted. */
class NotedDeliveries implements DeliveryStore {
  noted = 0;
  /** How often noting an attempt still fails. */
  failures = 0;
  readonly #inner: DeliveryStore;
  #change = Promise.withResolvers<void>();

  constructor(inner: DeliveryStore) {
    this.#inner = inner;
  }

  async attempted(...attempt: Parameters<DeliveryStore["attempted"]>): Promise<void> {
    try {
      if (this.failures > 0) {
        this.failures -= 1;
        throw new Error("The disk is full, says the test");
      }
      await this.#inner.attempted(...attempt);
      this.noted += 1;
    } finally {
      this.#change.resolve();
      this.#change = Promise.withResolvers();
    }
  }

  /** Waits until something holds that an attempt changes. */
  async until(holds: () => boolean): Promise<void> {
    while (!holds()) await this.#change.promise;
  }

  takeDue(...limits: Parameters<DeliveryStore["takeDue"]>) {
    return this.#inner.takeDue(...limits);
  }

  list(job: string) {
    return this.#inner.list(job);
  }

  nextMs(...limits: Parameters<DeliveryStore["nextMs"]>) {
    return this.#inner.nextMs(...limits);
  }

  onDue(listener: () => void) {
    return this.#inner.onDue(listener);
  }
}

/** A store with jobs whose webhooks are due, and a sender whose time is the test's. */
export class WebhookBench implements AsyncDisposable {
  readonly clock = new ManualClock();
  readonly outcomes: string[] = [];
  deliveries!: NotedDeliveries;
  sender!: WebhookSender;
  #store!: Store;
  #jobs = 0;
  readonly #dir: string;
  readonly #options: Partial<WebhookSenderOptions>;

  private constructor(dir: string, options: Partial<WebhookSenderOptions>) {
    this.#dir = dir;
    this.#options = options;
  }

  static async open(options: Partial<WebhookSenderOptions> = {}): Promise<WebhookBench> {
    const bench = new WebhookBench(await mkdtemp(join(tmpdir(), "flurry-webhooks-")), options);
    await bench.#start();
    return bench;
  }

  /** Ends sender and store, and opens both again on the same directory. */
  async restart(): Promise<void> {
    await this.#stop();
    await this.#start();
  }

  async #start(): Promise<void> {
    const { clock } = this;
    this.#store = await openStore({ dir: this.#dir, clock });
    this.deliveries = new NotedDeliveries(this.#store.deliveries);
    this.sender = new WebhookSender({
      deliveries: this.deliveries,
      guard: new WebhookGuard({ allow: ["127.0.0.1"] }),
      clock,
      after: clock.after,
      random: () => 0,
      metrics: { webhookAttempted: (outcome) => this.outcomes.push(outcome) },
      ...this.#options,
    });
    this.sender.start();
  }

  /** A job that has just been canceled, and whose webhook is to hear of it. */
  async canceledJob(url: string, secret?: string): Promise<string> {
    const id = `job_${(++this.#jobs).toString(16).padStart(24, "0")}`;
    const spec = WorkerSpec.parse({ image: "base", command: ["true"] });
    await using draft = await this.#store.jobs.draft({
      ...{ id, owner: "", spec, family: familyOf(spec), priority: 5, retry: spec.retry, env: {}, tags: [] },
      webhook: { url, secret, events: ["job.canceled"] },
    });
    await draft.addCount(1);
    await draft.commit("");
    await this.#store.jobs.cancel(id, "The test wants it");
    return id;
  }

  async delivery(job: string): Promise<Delivery> {
    const [delivery] = await this.deliveries.list(job);
    return delivery!;
  }

  async #stop(): Promise<void> {
    await this.sender[Symbol.asyncDispose]();
    await this.#store[Symbol.asyncDispose]();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#stop();
    await rm(this.#dir, { recursive: true });
  }
}
