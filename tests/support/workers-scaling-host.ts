import { FlurryError } from "../../errors/errors.ts";
import { Admission, type Ticket } from "../../runtime/fork/admission.ts";
import type { ChildLike, Place, ScalingPorts } from "../../runtime/workers/scaling/ports.ts";
import type { SimulatedTime } from "./workers-scaling-time.ts";

export interface HostOptions {
  /** Milliseconds that a fork takes. */
  forkMs: number;
  /** Milliseconds that a child takes to be gone. @default 5 */
  endMs?: number;
  /** Children that the host admits. @default 1000 */
  places?: number;
  /** Forks under way at which none is begun ahead of need. @default 8 */
  cores?: number;
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

/** A host with real admission, on which children take their time. */
export class SimulatedHost implements ScalingPorts<SimulatedChild> {
  readonly children: SimulatedChild[] = [];
  /** When each fork began. */
  readonly forkedAt: number[] = [];
  /** Children that were forked ahead of need. */
  readonly ahead = new Set<SimulatedChild>();
  mostChildren = 0;
  /** Whether others wait for room. */
  roomWanted = false;
  /** Tickets that are held. */
  tickets = 0;
  readonly #time: SimulatedTime;
  readonly #options: HostOptions;
  readonly #admission: Admission;
  #forking = 0;

  isRoomWanted(): boolean {
    return this.roomWanted;
  }

  constructor(time: SimulatedTime, options: HostOptions) {
    this.#time = time;
    this.#options = options;
    const { places = 1000 } = options;
    this.#admission = new Admission({ slots: places, memoryBytes: Number.MAX_SAFE_INTEGER });
  }

  get live(): SimulatedChild[] {
    return this.children.filter(({ gone }) => !gone);
  }

  async admit(signal: AbortSignal): Promise<Place> {
    return this.#counted(await this.#admission.family(0).acquire({ signal }));
  }

  admitAhead(): Place | undefined {
    if (this.#forking >= (this.#options.cores ?? 8)) return undefined;
    const ticket = this.#admission.family(0).tryAcquire();
    return ticket && this.#counted(ticket);
  }

  async fork(signal: AbortSignal, isAhead = false): Promise<SimulatedChild> {
    const n = this.forkedAt.length;
    this.forkedAt.push(this.#time.monotonic());
    const { forkMs, endMs = 5, failure } = this.#options;
    this.#forking += 1;
    await this.#time.sleep(forkMs, signal).finally(() => {
      this.#forking -= 1;
    });
    const error = failure?.(n);
    if (error) throw error;
    const child = new SimulatedChild(`vm-${n}`, this.#time.monotonic(), () => this.#time.sleep(endMs));
    this.children.push(child);
    if (isAhead) this.ahead.add(child);
    return child;
  }

  #counted(ticket: Ticket): Place {
    this.tickets += 1;
    this.mostChildren = Math.max(this.mostChildren, this.tickets);
    return {
      rest: () => ticket.rest(),
      resume: () => ticket.resume(),
      [Symbol.dispose]: () => {
        this.tickets -= 1;
        ticket[Symbol.dispose]();
      },
    };
  }
}

export function forkFailed(): FlurryError {
  return new FlurryError("FORK_FAILED", "No luck");
}
