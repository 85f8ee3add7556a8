import type { StoredWorker, WorkerStore } from "../jobs/ports.ts";

/** Workers that are read from the store at a time: each may have megabytes of code. */
const STEP = 10;

/** Which worker answers for a host name, and what it is now. */
export class WorkerHosts {
  readonly #workers: WorkerStore;
  /** Undefined when it has to be made anew. */
  #names: Promise<Map<string, string>> | undefined;

  /** Current versions that have been asked for. To read one from the store is to parse all of its code. */
  readonly #current = new Map<string, Promise<StoredWorker | undefined>>();
  readonly #listeners = new Set<(name: string) => void>();

  constructor(workers: WorkerStore) {
    this.#workers = workers;
  }

  /** @param host - in lower case, without a port */
  async find(host: string): Promise<string | undefined> {
    this.#names ??= this.#read();
    const names = this.#names;
    try {
      return (await names).get(host);
    } catch (error) {
      if (this.#names === names) this.#names = undefined;
      throw error;
    }
  }

  /** The current version of a worker. */
  async worker(name: string): Promise<StoredWorker | undefined> {
    const reading = this.#current.get(name) ?? this.#workers.get(name);
    this.#current.set(name, reading);
    let worker: StoredWorker | undefined;
    try {
      worker = await reading;
      return worker;
    } finally {
      // What is not there, or cannot be read, is asked for again.
      if (!worker && this.#current.get(name) === reading) this.#current.delete(name);
    }
  }

  /** A worker was deployed, changed or removed. */
  changed(name: string): void {
    // Who is reading it now does not bring the old back.
    this.#current.delete(name);
    this.#names = undefined;
    for (const listener of this.#listeners) listener(name);
  }

  /** Calls back after each change of a worker. */
  onChange(listener: (name: string) => void): Disposable {
    this.#listeners.add(listener);
    return { [Symbol.dispose]: () => void this.#listeners.delete(listener) };
  }

  async #read(): Promise<Map<string, string>> {
    const names = new Map<string, string>();
    let cursor: string | undefined;
    do {
      const page = await this.#workers.list({ cursor, limit: STEP });
      for (const { name, spec } of page.items) {
        for (const host of spec.http?.hosts ?? []) if (!names.has(host)) names.set(host, name);
      }
      cursor = page.next;
    } while (cursor !== undefined);
    return names;
  }
}
