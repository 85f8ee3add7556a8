/** What the router needs to know of a child; `Child` of runtime/fork has this shape. */
export interface ChildLike extends AsyncDisposable {
  readonly id: string;
  /**
   * Settles when the child's VM is gone, whatever the reason, or is not to be used any more: with a
   * FlurryError CHILD_DIED for the requests in it, if it is known why.
   */
  readonly exited: Promise<unknown>;
}

/** Room for one child on the host, given back when it is disposed. */
export interface Place extends Disposable {
  /** The child has no requests, and is kept all the same: its processor time is for others. */
  rest?(): void;
  /** It has some again. */
  resume?(): void;
}

/** What the router has others do. */
export interface ScalingPorts<C extends ChildLike> {
  /**
   * Forks one child that is ready to serve. An aborted fork rejects, and leaves nothing behind.
   *
   * @param isAhead - nobody needs it yet. @default false
   * @throws FlurryError FORK_FAILED, CHILD_UNPROVEN, ...: the fork is tried again; NOT_READY: it is not, as
   * forks keep failing
   */
  fork(signal: AbortSignal, isAhead?: boolean): Promise<C>;
  /**
   * Waits for room for one child on the host. The ticket is disposed when the child is gone.
   *
   * @throws FlurryError ADMISSION_REFUSED: there will be no room however long one waits; NOT_READY as `fork`
   */
  admit(signal: AbortSignal): Promise<Place>;
  /**
   * The same for a fork that begins ahead of need: undefined unless there is room that nobody waits for, and
   * processor time that no other fork needs.
   */
  admitAhead(): Place | undefined;
  /** Whether others wait for room on the host, which a child without requests would give them. @default they never do */
  isRoomWanted?(): boolean;
}
