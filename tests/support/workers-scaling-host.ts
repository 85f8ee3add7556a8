import { FlurryError } from "../../errors/errors.ts";
import { Admission } from "../../runtime/fork/admission.ts";
import type { ChildLike, ScalingPorts } from "../../runtime/workers/scaling/ports.ts";
import type { SimulatedTime } from "./workers-scaling-time.ts";

export interface HostOptions {
  /** Milliseconds from a shell to a child that has proven itself. */
  forkMs: number;
  /** Milliseconds that a shell takes to start. */
  shellMs: number;
  /** Milliseconds that a child takes to be gone. @default 5 */
  endMs?: number;
  /** Children that the host admits. @default 1000 */
  places?: number;
  /** What the n-th fork, from 0, fails with. @default none fails */
  failure?: (n: number) => Error | undefined;
}

/** A child that is only simulated. */
export class SimulatedChild implements ChildLike {
  readonly id: string;
  readonly readyAt: number;
  readonly exited: Promise<void>;
  disposals = 0;
  /** Whether its VM is gone. */
  gone = false;
  readonly #exit = Promise.withResolvers<void>();
  readonly #end: () => Promise<void>;

  constructor(id: string, readyAt: number, end: () => Promise<void>) {
    this.id = id;
    this.readyAt = readyAt;
    this.exited = this.#exit.promise;
    this.#end = end;
  }

  die(): void {
    this.gone = true;
    this.#exit.resolve();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.disposals += 1;
    await this.#end();
    this.die();
  }
}

/** A host with real admission, on which shells and children take their time. */
export class SimulatedHost implements ScalingPorts<SimulatedChild> {
  readonly children: SimulatedChild[] = [];
  /** When each fork began. */
  readonly forkedAt: number[] = [];
  /** Forks that found a shell waiting. */
  warm = 0;
  /** Each number of shells that was asked for. */
  readonly asked: number[] = [];
  mostShells = 0;
  mostChildren = 0;
  /** Whether others wait for room. */
  roomWanted = false;
  /** Tickets that are held. */
  tickets = 0;
  readonly #time: SimulatedTime;
  readonly #options: HostOptions;
  readonly #admission: Admission;
  #keep = 0;
  #waiting = 0;
  #starting = 0;

  isRoomWanted(): boolean {
    return this.roomWanted;
  }

  constructor(time: SimulatedTime, options: HostOptions) {
    this.#time = time;
    this.#options = options;
    const { places = 1000 } = options;
    this.#admission = new Admission({ slots: places, memoryBytes: Number.MAX_SAFE_INTEGER });
  }

  /** Shells that wait or are being started ahead. */
  get shells(): number {
    return this.#waiting + this.#starting;
  }

  get live(): SimulatedChild[] {
    return this.children.filter(({ gone }) => !gone);
  }

  async admit(signal: AbortSignal): Promise<Disposable> {
    const ticket = await this.#admission.family(0).acquire({ signal });
    this.tickets += 1;
    this.mostChildren = Math.max(this.mostChildren, this.tickets);
    return {
      [Symbol.dispose]: () => {
        this.tickets -= 1;
        ticket[Symbol.dispose]();
      },
    };
  }

  async fork(signal: AbortSignal): Promise<SimulatedChild> {
    const n = this.forkedAt.length;
    this.forkedAt.push(this.#time.monotonic());
    const { forkMs, shellMs, endMs = 5, failure } = this.#options;
    const isWarm = this.#waiting > 0;
    if (isWarm) {
      this.warm += 1;
      this.#waiting -= 1;
      this.#refill();
    }
    await this.#time.sleep(isWarm ? forkMs : shellMs + forkMs, signal);
    const error = failure?.(n);
    if (error) throw error;
    const child = new SimulatedChild(`vm-${n}`, this.#time.monotonic(), () => this.#time.sleep(endMs));
    this.children.push(child);
    return child;
  }

  keepShells(count: number): void {
    this.asked.push(count);
    this.#keep = count;
    this.#waiting = Math.min(this.#waiting, count);
    this.#refill();
  }

  #refill(): void {
    while (this.shells < this.#keep) {
      this.#starting += 1;
      this.mostShells = Math.max(this.mostShells, this.shells);
      this.#time.after(this.#options.shellMs, () => {
        this.#starting -= 1;
        if (this.#waiting < this.#keep) this.#waiting += 1;
        this.#refill();
      });
    }
  }
}

export function forkFailed(): FlurryError {
  return new FlurryError("FORK_FAILED", "No luck");
}
