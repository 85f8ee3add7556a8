import type { Lane } from "./ports.ts";

/** Highest priority of a job. */
const TOP = 9;

interface Track {
  /** Where it stands: who has the smallest pass is served next. */
  pass: number;
  /** Number of the pick that served it last, to break ties: who waits longest comes first. */
  servedAt: number;
}

interface OwnerTrack extends Track {
  lanes: Tracks<number>;
}

/**
 * Chooses who is served next: owners have equal shares, and each owner's lanes shares by 2^priority
 * (stride scheduling: Waldspurger and Weihl, 1995). An owner waits for at most as many picks as there are
 * owners; a lane of priority p for at most 1023 / 2^p picks of its owner, and one more for each lane.
 */
export class Fairness {
  readonly #owners = new Tracks<string, OwnerTrack>();

  /**
   * The lane to be served next, which counts as served from now on.
   *
   * @param lanes - all that have a task ready
   * @param kept - owners who have no lane there only because they are blocked for now: they keep their place
   */
  pick(lanes: readonly Lane[], kept: ReadonlySet<string> = new Set()): Lane | undefined {
    const byOwner = Map.groupBy(lanes, (lane) => lane.owner);
    this.#owners.forget((owner) => byOwner.has(owner) || kept.has(owner));
    const track = this.#owners.serve(
      byOwner.keys(),
      () => 1,
      () => ({ lanes: new Tracks<number>() }),
    );
    if (!track) return undefined;
    const [owner, { lanes: own }] = track;
    const byPriority = new Map(byOwner.get(owner)!.map((lane) => [lane.priority, lane]));
    own.forget((priority) => byPriority.has(priority));
    const [priority] = own.serve(byPriority.keys(), strideOf, () => ({}))!;
    return byPriority.get(priority);
  }

  /** Owners and lanes that are remembered. */
  get size(): number {
    let size = 0;
    for (const [, { lanes }] of this.#owners) size += 1 + lanes.size;
    return size;
  }
}

/** How far a lane moves when it is served. */
function strideOf(priority: number): number {
  return 2 ** (TOP - priority);
}

/** Who takes part, each with its pass. */
class Tracks<K, T extends Track = Track> {
  readonly #tracks = new Map<K, T>();
  /** Pass of the one that was served last: nobody who takes part stands before it. */
  #now = 0;
  #picks = 0;

  get size(): number {
    return this.#tracks.size;
  }

  [Symbol.iterator](): Iterator<[K, T]> {
    return this.#tracks.entries();
  }

  /**
   * Forgets those who do not take part any more, unless they have had more than their share: coming back
   * at once they would have it again.
   */
  forget(takesPart: (key: K) => boolean): void {
    for (const [key, { pass }] of this.#tracks) {
      if (pass <= this.#now && !takesPart(key)) this.#tracks.delete(key);
    }
  }

  /**
   * Serves the one of `keys` with the smallest pass. Who is new begins at the present: before the one that
   * has just been served, and behind those that have waited longer.
   */
  serve(
    keys: Iterable<K>,
    stride: (key: K) => number,
    fresh: () => Omit<T, keyof Track>,
  ): [K, T] | undefined {
    let best: [K, T] | undefined;
    for (const key of keys) {
      let track = this.#tracks.get(key);
      if (!track) {
        track = { ...fresh(), pass: this.#now + stride(key), servedAt: this.#picks - 0.5 } as T;
        this.#tracks.set(key, track);
      }
      // Nobody saves up for later.
      track.pass = Math.max(track.pass, this.#now);
      if (!best || before(track, best[1])) best = [key, track];
    }
    if (!best) return undefined;
    const [key, track] = best;
    this.#now = track.pass;
    track.pass += stride(key);
    track.servedAt = ++this.#picks;
    return best;
  }
}

function before(a: Track, b: Track): boolean {
  return a.pass < b.pass || (a.pass === b.pass && a.servedAt < b.servedAt);
}
