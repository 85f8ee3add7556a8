import { getLogger } from "@logtape/logtape";
import type { ReceiptStore, StoredReceipt } from "../jobs/ports.ts";
import type { ChildObserver, ProvenChild } from "../jobs/task-runtime.ts";
import { type After, systemAfter } from "../jobs/timer.ts";

const logger = getLogger(["flurry", "gateway"]);

/** Proofs that wait to be stored: more are lost, since a fork waits for nothing here. */
const MOST_WAITING = 10_000;
/** Signed and stored at a time: some 10 ms. */
const BATCH = 200;
/** Forks come in bursts, and have the processor to themselves for so long. */
const PAUSE_MS = 50;

export interface ReceiptsOptions {
  store: ReceiptStore;
  metrics: {
    childUnproven(field: string): void;
    receiptsLost(count: number): void;
  };
  after?: After | undefined;
}

/** Keeps what children prove, behind the forks' back: none waits for it, and none fails with it. */
export class Receipts implements ChildObserver, AsyncDisposable {
  readonly #options: ReceiptsOptions;
  #waiting: ProvenChild[] = [];
  #writing: Promise<void> | undefined;
  /** Whether the last ones could not be kept; that is told once. */
  #failing = false;

  constructor(options: ReceiptsOptions) {
    this.#options = options;
  }

  proven(child: ProvenChild): void {
    if (this.#waiting.length >= MOST_WAITING) {
      this.#lose(1, "more came than could be stored");
      return;
    }
    this.#waiting.push(child);
    this.#writing ??= this.#write();
  }

  unproven(field: string): void {
    this.#options.metrics.childUnproven(field);
  }

  /** The receipt of a child. One that has just proven itself is waited for. */
  async find(vm: string): Promise<StoredReceipt | undefined> {
    // It is among those that are being written, or the next ones.
    await this.#writing;
    await this.#writing;
    return await this.#options.store.find(vm);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    while (this.#writing) await this.#writing;
  }

  async #write(): Promise<void> {
    const { after = systemAfter } = this.#options;
    await new Promise<void>((resolve) => after(PAUSE_MS, resolve));
    const children = this.#waiting;
    this.#waiting = [];
    for (let at = 0; at < children.length; at += BATCH) await this.#store(children.slice(at, at + BATCH));
    // In one turn: whoever comes now begins the next one, or has it begun.
    this.#writing = this.#waiting.length > 0 ? this.#write() : undefined;
  }

  async #store(children: readonly ProvenChild[]): Promise<void> {
    try {
      const receipts = children.map(({ vm, receipt }) => ({ vm, payload: JSON.stringify(receipt()) }));
      await this.#options.store.add(receipts);
      this.#failing = false;
    } catch (error) {
      this.#lose(children.length, error instanceof Error ? error.message : String(error));
    }
  }

  #lose(count: number, reason: string): void {
    this.#options.metrics.receiptsLost(count);
    if (!this.#failing) logger.error("Receipts of children are lost: {reason}", { reason });
    this.#failing = true;
  }
}
