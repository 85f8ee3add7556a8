/** How many VMs each owner has, of those that are forked or made by hand. */
export class VmBudget {
  readonly #taken = new Map<string, number>();

  /** One more for this owner; undefined when it has as many as it may. @param limit @default no limit */
  take(owner: string, limit = Number.POSITIVE_INFINITY): Disposable | undefined {
    const taken = this.#taken.get(owner) ?? 0;
    if (taken >= limit) return undefined;
    this.#taken.set(owner, taken + 1);
    let held = true;
    return {
      [Symbol.dispose]: () => {
        if (!held) return;
        held = false;
        const left = (this.#taken.get(owner) ?? 1) - 1;
        if (left === 0) this.#taken.delete(owner);
        else this.#taken.set(owner, left);
      },
    };
  }
}
