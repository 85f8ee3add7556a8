import { clearTimeout, setTimeout } from "node:timers";
import { workerLimits } from "./constants.ts";
import { WorkerError } from "./errors.ts";

/** Credit goes back in such steps at most, so that its messages are few. */
const TICK_MS = 50;

/**
 * Holds the guest's LOG and FAULT messages to their window, and gives credit back no faster than the
 * rate allows: however much a worker writes, the host reads no more of it than that.
 */
export class RecordIntake {
  readonly #perTick: number;
  readonly #grant: (bytes: number) => void;
  #credit: number = workerLimits.LOG_WINDOW;
  #owed = 0;
  #paused = false;
  #timer: ReturnType<typeof setTimeout> | undefined;

  /**
   * @param bytesPerSecond - of payload
   * @param grant - sends credit to the guest
   */
  constructor(bytesPerSecond: number, grant: (bytes: number) => void) {
    this.#perTick = Math.max(1, Math.floor((bytesPerSecond * TICK_MS) / 1000));
    this.#grant = grant;
  }

  /** @throws WorkerError AGENT_PROTOCOL if the guest had no credit for it */
  take(cost: number): void {
    if (cost > this.#credit) {
      const excess = `log records of ${cost} bytes with a credit of ${this.#credit}`;
      throw new WorkerError("AGENT_PROTOCOL", `The guest sent ${excess}`);
    }
    this.#credit -= cost;
    this.#owed += cost;
    this.#schedule();
  }

  /** Says nothing to the guest until `resume`. */
  pause(): void {
    this.#paused = true;
    clearTimeout(this.#timer);
    this.#timer = undefined;
  }

  resume(): void {
    this.#paused = false;
    this.#schedule();
  }

  #schedule(): void {
    const isDue = this.#owed >= workerLimits.LOG_WINDOW / 8;
    if (!isDue || this.#paused || this.#timer !== undefined) return;
    this.#timer = setTimeout(() => this.#tick(), TICK_MS);
    this.#timer.unref();
  }

  #tick(): void {
    this.#timer = undefined;
    const bytes = Math.min(this.#owed, this.#perTick);
    this.#owed -= bytes;
    this.#credit += bytes;
    this.#grant(bytes);
    this.#schedule();
  }
}
