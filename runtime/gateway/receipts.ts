import { createHash } from "node:crypto";
import { getLogger } from "@logtape/logtape";
import type { Receipt } from "../api/mod.ts";
import type { ChildObserver, Proof } from "../fork/child-watch.ts";
import type { UnprovenError, UnprovenField } from "../fork/identity.ts";
import type { ReceiptStore, StoredReceipt } from "../jobs/ports.ts";
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
    childUnproven(field: UnprovenField): void;
    receiptsLost(count: number): void;
  };
  after?: After | undefined;
}

/** Keeps what children prove, behind the forks' back: none waits for it, and none fails with it. */
export class Receipts implements ChildObserver, AsyncDisposable {
  readonly #options: ReceiptsOptions;
  #waiting: Proof[] = [];
  #writing: Promise<void> | undefined;
  /** Whether the last ones could not be kept; that is told once. */
  #failing = false;

  constructor(options: ReceiptsOptions) {
    this.#options = options;
  }

  proven(proof: Proof): void {
    if (this.#waiting.length >= MOST_WAITING) {
      this.#lose(1, "more came than could be stored");
      return;
    }
    this.#waiting.push(proof);
    this.#writing ??= this.#write().finally(() => {
      this.#writing = undefined;
    });
  }

  unproven({ field }: UnprovenError): void {
    this.#options.metrics.childUnproven(field);
  }

  /** The receipt of a child. One that has just proven itself is waited for. */
  async find(vm: string): Promise<StoredReceipt | undefined> {
    await this.#writing;
    return await this.#options.store.find(vm);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#writing;
  }

  async #write(): Promise<void> {
    const { after = systemAfter } = this.#options;
    await new Promise<void>((resolve) => after(PAUSE_MS, resolve));
    while (this.#waiting.length > 0) await this.#store(this.#waiting.splice(0, BATCH));
  }

  async #store(proofs: readonly Proof[]): Promise<void> {
    try {
      const receipts = proofs.map((proof) => ({
        vm: proof.sent.vmId,
        payload: JSON.stringify(receiptOf(proof)),
      }));
      await this.#options.store.add(receipts);
      this.#failing = false;
    } catch (error) {
      this.#lose(proofs.length, error instanceof Error ? error.message : String(error));
    }
  }

  #lose(count: number, reason: string): void {
    this.#options.metrics.receiptsLost(count);
    if (!this.#failing) logger.error("Receipts of children are lost: {reason}", { reason });
    this.#failing = true;
  }
}

/** What is kept of a proof: of random numbers the hashes, and of an SSH key what is public. */
export function receiptOf({ sent, read, parent, hooks, sentAt, elapsedMs }: Proof): Receipt {
  const { hostname, index, machineId, bootId, realtimeNs, entropy } = sent;
  return {
    ...{ format: "flurry-receipt", version: 1, vm: sent.vmId, at: new Date(sentAt).toISOString() },
    parent: {
      image: parent.image,
      memory: parent.memory ?? null,
      frozenAt: new Date(parent.frozenAt).toISOString(),
    },
    sent: {
      ...{ hostname, index, machineId, bootId, realtimeNs: String(realtimeNs) },
      ...{ entropyBytes: entropy.length, entropySha256: sha256(entropy), hooks },
    },
    read: {
      ...{ vm: read.vmId, hostname: read.hostname, index: read.index },
      ...{ machineId: read.machineId, bootId: read.bootId, realtimeNs: String(read.realtimeNs) },
      ...{ entropyBytes: read.entropyBytes, reseeded: read.reseeded, drawSha256: sha256(read.draw) },
      vmGenId: read.vmGenId,
      ...(read.sshKey !== undefined && { sshKey: read.sshKey }),
      hooks: read.hooks.map(({ name, pid, text }) => ({ name, pid, evidence: text })),
    },
    driftMs: Number(realtimeNs - read.beforeNs) / 1e6,
    elapsedMs,
    kernelMs: read.kernelNs / 1e6,
    hooksMs: (read.tookNs - read.kernelNs) / 1e6,
  };
}

function sha256(bytes: Uint8Array): string {
  return createHash("sha256").update(bytes).digest("hex");
}
