import type { WorkerStore } from "../jobs/ports.ts";

/** Workers that are read from the store at a time: each may have megabytes of code. */
const STEP = 10;

/** Which worker answers for a host name. */
export class WorkerHosts {
  readonly #workers: WorkerStore;
  /** Undefined when it has to be made anew. */
  #names: Promise<Map<string, string>> | undefined;

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

  /** A worker was deployed, changed or removed. */
  changed(): void {
    this.#names = undefined;
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
