import type { WorkerLogRecord } from "../../api/mod.ts";
import type { WorkerOutput } from "./js-child.ts";

/** What is kept of each worker: this many records, and characters. */
const MOST_RECORDS = 1000;
const MOST_CHARACTERS = 512 * 1024;

/** The last that one worker has printed. */
class Ring {
  readonly records: WorkerLogRecord[] = [];
  #characters = 0;

  add(record: WorkerLogRecord): void {
    this.records.push(record);
    this.#characters += record.text.length;
    while (this.records.length > MOST_RECORDS || this.#characters > MOST_CHARACTERS) {
      this.#characters -= this.records.shift()!.text.length;
    }
  }
}

/** The last that JS workers have printed over HTTP requests, as long as this process lives. */
export class WorkerLogs {
  readonly #rings = new Map<string, Ring>();
  readonly #listeners = new Set<(worker: string) => void>();
  /** Grows over all workers: nobody has to know when one was removed and deployed anew. */
  #last = 0;

  /** Takes what a worker's children print. */
  of(worker: string): WorkerOutput {
    return {
      onLog: (vm, { level, text, requestId }) => {
        this.#add(worker, { vm, level, text, ...(requestId !== undefined && { requestId }) });
      },
      onFault: (vm, { message, stack, requestId }) => {
        const text = stack ?? message;
        this.#add(worker, { vm, level: "error", text, ...(requestId !== undefined && { requestId }) });
      },
    };
  }

  /** Adds what is told of a worker by its host. @param record.vm - "" when it is of none */
  note(worker: string, record: Pick<WorkerLogRecord, "vm" | "level" | "text">): void {
    this.#add(worker, record);
  }

  /** Records with an id above `after` that are still kept, oldest first. */
  read(worker: string, after: number): WorkerLogRecord[] {
    return this.#rings.get(worker)?.records.filter(({ id }) => id > after) ?? [];
  }

  /** Calls back after each record. */
  onAppend(listener: (worker: string) => void): Disposable {
    this.#listeners.add(listener);
    return { [Symbol.dispose]: () => void this.#listeners.delete(listener) };
  }

  remove(worker: string): void {
    this.#rings.delete(worker);
  }

  #add(worker: string, record: Omit<WorkerLogRecord, "id" | "at">): void {
    const ring = this.#rings.get(worker) ?? new Ring();
    this.#rings.set(worker, ring);
    ring.add({ id: ++this.#last, at: new Date().toISOString(), ...record });
    for (const listener of this.#listeners) listener(worker);
  }
}
