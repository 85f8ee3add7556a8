import type { KeyStore } from "./ports.ts";

/** Counts what runs of each key, and tells who may not have more. */
export class Owners {
  readonly #keys: Pick<KeyStore, "find">;
  readonly #running = new Map<string, { tasks: number; limit: number }>();

  constructor(keys: Pick<KeyStore, "find">) {
    this.#keys = keys;
  }

  /** One more task runs. */
  begin(owner: string): void {
    const entry = this.#running.get(owner) ?? { tasks: 0, limit: Number.POSITIVE_INFINITY };
    entry.tasks += 1;
    this.#running.set(owner, entry);
  }

  /** Looks the limit up: keys come and go. */
  async look(owner: string): Promise<void> {
    const key = owner === "" ? undefined : await this.#keys.find(owner);
    const entry = this.#running.get(owner);
    if (entry) entry.limit = key?.limits.runningTasks ?? Number.POSITIVE_INFINITY;
  }

  /** One has ended. */
  end(owner: string): void {
    const entry = this.#running.get(owner);
    if (!entry) return;
    entry.tasks -= 1;
    if (entry.tasks === 0) this.#running.delete(owner);
  }

  /** Owners at their limits. */
  blocked(): Set<string> {
    const full = [...this.#running].filter(([, { tasks, limit }]) => tasks >= limit);
    return new Set(full.map(([owner]) => owner));
  }
}
