import { shellShares } from "./shell-shares.ts";

/** What is kept open of a parent; `Parent` has this shape. */
export interface Forkable extends AsyncDisposable {
  /** Whether what its children come from is as it was. */
  readonly intact: boolean;
  readonly shells: { resize(count: number): void };
}

/** A parent that is in use, until this is disposed. */
export interface Hold<P> extends Disposable {
  parent: P;
}

interface Entry<P> {
  family: string;
  parent: P;
  /** Hash of the image that it was made of. */
  image: string;
  running: number;
}

export interface OpenParentsOptions {
  /** Parents kept open; more only while they are in use. */
  budget: number;
  /** Shells kept waiting in all. */
  shells: number;
  /** Called after there is a family's parent to fork from, or no longer. It must not throw. */
  onChange?: ((family: string) => void) | undefined;
}

/**
 * The parents that are open, by family: a budget of them, where the one that was longest not used goes
 * first, and never one that is in use. Their waiting shells go to those who need them.
 */
export class OpenParents<P extends Forkable> implements AsyncDisposable {
  readonly #budget: number;
  readonly #onChange: ((family: string) => void) | undefined;
  /** Longest not used first. */
  readonly #entries = new Map<string, Entry<P>>();
  readonly #closing = new Set<Promise<void>>();
  /** Families of the last uses. */
  #recent: string[] = [];
  #shells: number;

  constructor({ budget, shells, onChange }: OpenParentsOptions) {
    this.#budget = budget;
    this.#onChange = onChange;
    this.#shells = shells;
  }

  /** Shells kept waiting in all. */
  set shells(total: number) {
    this.#shells = total;
    this.#shareShells();
  }

  /** Hash of the image of a family's parent; undefined if there is none that can be forked. */
  imageOf(family: string): string | undefined {
    return this.#intact(family)?.image;
  }

  /** Takes a parent over. It counts as used so often that shells are kept for it. */
  add(family: string, parent: P, image: string): void {
    this.drop(family);
    this.#entries.set(family, { family, parent, image, running: 0 });
    for (let shell = 0; shell < this.#shells; shell++) this.#note(family);
    this.#evict(family);
    this.#shareShells();
    this.#onChange?.(family);
  }

  /** Keeps a family's parent open for as long as it is used; undefined if there is none to be forked. */
  hold(family: string): Hold<P> | undefined {
    const entry = this.#intact(family);
    if (!entry) return undefined;
    this.#entries.delete(family);
    this.#entries.set(family, entry);
    this.#note(family);
    this.#shareShells();
    entry.running += 1;
    let held = true;
    return {
      parent: entry.parent,
      [Symbol.dispose]: () => {
        if (!held) return;
        held = false;
        entry.running -= 1;
        this.#evict();
      },
    };
  }

  /** Closes a family's parent, or only this one of it. Children that run go on. */
  drop(family: string, parent?: P): void {
    const entry = this.#entries.get(family);
    if (!entry || (parent && entry.parent !== parent)) return;
    this.#entries.delete(family);
    this.#recent = this.#recent.filter((one) => one !== family);
    const closing = this.#close(entry.parent);
    this.#closing.add(closing);
    void closing.finally(() => this.#closing.delete(closing));
    this.#shareShells();
    this.#onChange?.(family);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const family of [...this.#entries.keys()]) this.drop(family);
    await Promise.all(this.#closing);
  }

  #intact(family: string): Entry<P> | undefined {
    const entry = this.#entries.get(family);
    if (!entry || entry.parent.intact) return entry;
    this.drop(family);
    return undefined;
  }

  async #close(parent: P): Promise<void> {
    await parent[Symbol.asyncDispose]();
  }

  /** @param fresh - not this one: it was made for somebody who has not come to use it yet */
  #evict(fresh?: string): void {
    for (const { family, running } of this.#entries.values()) {
      if (this.#entries.size <= this.#budget) return;
      if (running === 0 && family !== fresh) this.drop(family);
    }
  }

  #note(family: string): void {
    this.#recent.push(family);
    this.#recent.splice(0, this.#recent.length - 4 * this.#shells);
  }

  #shareShells(): void {
    const shares = shellShares(this.#recent, this.#shells);
    for (const { family, parent } of this.#entries.values()) parent.shells.resize(shares.get(family) ?? 0);
  }
}
