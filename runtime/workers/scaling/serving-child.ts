import type { FlurryError } from "../../../errors/errors.ts";
import type { ChildLike, Place } from "./ports.ts";

/** Why a child takes no more requests. */
export const retireReasons = [
  /** It has served the one request, or as many as a child may. */
  "served",
  /** Demand has not needed it. */
  "idle",
  "age",
  /** The work on a request failed, so that nobody knows what state it is in. */
  "error",
  "died",
  /** The router was disposed. */
  "closed",
] as const;
export type RetireReason = (typeof retireReasons)[number];

export interface Birth {
  /** Session that it belongs to; "" when it is for all, or for nobody yet. */
  key: string;
  /** Whether its fork began ahead of need. */
  isAhead: boolean;
  /** Monotonic times. */
  forkedAt: number;
  readyAt: number;
}

/** A request in a child. */
export interface Occupant {
  /** Gives its caller the error at once, and has the work on it end. */
  cut(error: FlurryError): void;
}

/** A child, and the requests that are in it. */
export class ServingChild<C extends ChildLike> {
  readonly child: C;
  readonly ticket: Place;
  readonly birth: Birth;
  readonly occupants = new Set<Occupant>();
  /** Requests that it was ever given. */
  given = 0;
  /** Whether it has answered one of them. */
  hasAnswered = false;
  /** Since when it has none. */
  idleSince: number;
  retired: RetireReason | undefined;
  /** Whether it is being disposed. */
  ending = false;

  constructor(child: C, ticket: Place, birth: Birth) {
    this.child = child;
    this.ticket = ticket;
    this.birth = birth;
    this.idleSince = birth.readyAt;
  }

  /** Requests that are in it. */
  get load(): number {
    return this.occupants.size;
  }
}
