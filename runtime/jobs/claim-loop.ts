import { getLogger } from "@logtape/logtape";
import { describeError } from "../../errors/errors.ts";
import { Fairness } from "./fairness.ts";
import type { HostRecord } from "./host-record.ts";
import type { LeaseKeeper } from "./lease-keeper.ts";
import type { Owners } from "./owners.ts";
import type { Blocked, Claim, Lane, Queue } from "./ports.ts";
import type { Preparing } from "./preparing.ts";
import type { Recorder } from "./recorder.ts";
import type { SetAsides } from "./set-aside.ts";
import type { Slots } from "./slots.ts";
import type { After } from "./timer.ts";
import type { Wake } from "./wake.ts";

const logger = getLogger(["flurry", "jobs"]);

export interface ClaimLoopOptions {
  queue: Queue;
  after: After;
  /** Notified whenever more may be claimed. */
  wake: Wake;
  hostId: string;
  leaseMs: number;
  slots: Slots;
  preparing: Preparing;
  owners: Owners;
  asides: SetAsides;
  recorder: Recorder;
  keeper: LeaseKeeper;
  record: HostRecord;
  /** Begins an attempt, which owns the slot. Whether more of its family may be claimed now. */
  begin: (claim: Claim, lane: Lane, slot: Disposable) => Promise<boolean>;
  /** A lease has run out. */
  onLost: (token: string) => void;
}

/** Claims tasks whenever there is a place for them: it waits for events and due times, and asks for nothing else. */
export class ClaimLoop implements AsyncDisposable {
  readonly #options: ClaimLoopOptions;
  readonly #fairness = new Fairness();
  readonly #onReady: Disposable;
  #loop: Promise<void> | undefined;
  #ending = false;
  #storeHasFailed = false;

  constructor(options: ClaimLoopOptions) {
    this.#options = options;
    this.#onReady = options.queue.onReady(() => options.wake.notify());
  }

  start(): void {
    this.#loop = this.#run();
  }

  /** Claims no more. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#ending = true;
    this.#onReady[Symbol.dispose]();
    this.#options.wake.notify();
    await this.#loop;
  }

  async #run(): Promise<void> {
    while (!this.#ending) {
      let waitMs: number | undefined;
      try {
        waitMs = await this.#round();
      } catch (error) {
        const { code, message } = describeError(error);
        logger.error("Cannot take tasks: {error}", { error });
        this.#storeFailed(code, message);
        waitMs = this.#options.asides.nextMs();
      }
      using _timer =
        waitMs === undefined ? undefined : this.#options.after(waitMs, () => this.#options.wake.notify());
      await this.#options.wake.wait();
    }
  }

  /** Takes what can be taken. Returns the time until there may be more that no event tells of. */
  async #round(): Promise<number | undefined> {
    const { queue, asides } = this.#options;
    // Asked first as well: what comes due during the round was still blocked when tasks were looked for.
    const waits = [asides.nextMs()];
    if (await this.#mayClaim()) {
      if ((await queue.nextMs()) === 0) await this.#expire();
      await this.#fill();
    }
    waits.push(asides.nextMs());
    // While nothing can be taken, it is no news that something is ready.
    if (await this.#mayClaim()) waits.push(await queue.nextMs());
    const times = waits.filter((ms) => ms !== undefined);
    return times.length === 0 ? undefined : Math.min(...times);
  }

  async #mayClaim(): Promise<boolean> {
    const { slots, recorder, asides, record } = this.#options;
    if (this.#ending || !slots.free || recorder.troubled || asides.hostBlocked) return false;
    if (!asides.hostIsDue) return true;
    // A store that takes nothing is no case for a task.
    if (!(await record.beat())) {
      this.#storeFailed("STORE_FAILED", "The store takes nothing");
      return false;
    }
    if (this.#storeHasFailed) {
      this.#storeHasFailed = false;
      asides.hostWorked();
    }
    return true;
  }

  #storeFailed(code: string, message: string): void {
    this.#storeHasFailed = true;
    this.#options.asides.hostFailed(code, message);
  }

  async #expire(): Promise<void> {
    // A process that stood still for a while has its leases first.
    await this.#options.keeper.renew();
    for (const token of await this.#options.queue.expire()) this.#options.onLost(token);
  }

  async #fill(): Promise<void> {
    const { queue, slots, hostId, leaseMs } = this.#options;
    let lanes: Lane[] | undefined;
    while (await this.#mayClaim()) {
      const blocked = this.#blocked();
      lanes = (lanes ?? (await queue.lanes(blocked))).filter(({ owner }) => !blocked.owners.has(owner));
      // An attempt whose parent has become ready may have taken the last place since, or want it from here on.
      if (!slots.free) return;
      const lane = this.#fairness.pick(lanes, blocked.owners);
      if (!lane) {
        if (this.#options.preparing.passTurn()) this.#options.wake.notify();
        return;
      }
      using stack = new DisposableStack();
      stack.use(slots.take());
      const claim = await queue.claim(lane, { blocked, host: hostId, leaseMs });
      if (!claim) lanes = lanes.filter((other) => other !== lane);
      // Lanes with nothing but tasks of a family that is blocked now must not be picked.
      else if (!(await this.#options.begin(claim, lane, stack.move()))) lanes = undefined;
    }
  }

  #blocked(): Blocked {
    const families = new Set([
      ...this.#options.preparing.blocked(),
      ...this.#options.asides.blockedFamilies(),
    ]);
    return { families, owners: this.#options.owners.blocked() };
  }
}
