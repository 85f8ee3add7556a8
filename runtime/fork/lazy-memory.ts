import { setTimeout as delay } from "node:timers/promises";
import { getLogger } from "@logtape/logtape";
import { codeOf, FlurryError } from "../../errors/errors.ts";
import type { ControlEvent } from "../../memserver/process/control.ts";
import type { QmpEvent } from "../../qmp/mod.ts";
import type { Shell } from "../vm/shell.ts";
import type { ChildMemory, GivenMemory } from "./child-memory.ts";
import type { Memserver } from "./memserver.ts";

/** First and longest wait in milliseconds between two tries to recover a child; it doubles. */
const RETRY_MS = 25;
const MOST_RETRY_MS = 400;

const logger = getLogger(["flurry", "memserver"]);

export interface LazyOptions {
  /** Whether children are sent what the first one asked for before they ask. @default true */
  workingSet?: boolean | undefined;
  /** Milliseconds after the start of a child until it is sent what it has not asked for. @default 5000 */
  backgroundAfterMs?: number | undefined;
  /** Bytes a second of that; Infinity for as fast as the child takes them. @default 128 MiB */
  backgroundBytesPerSecond?: number | undefined;
  /** Milliseconds that a child may stand still without a memserver before it is given up. @default 10000 */
  recoverMs?: number | undefined;
  /** Whether pages that the guest waits for get a connection of their own. @default where QEMU can, soundly */
  preempt?: boolean | undefined;
  /** Has the memserver ask when pages are in their place, which takes time of its own. @default false */
  measure?: boolean | undefined;
}

/** Children have their memory from a memserver, page by page as they need it. */
export class LazyMemory implements ChildMemory {
  readonly #memserver: Memserver;
  readonly #image: string;
  readonly #options: LazyOptions;

  /** @param image - hash of a descriptor that is open in the memserver */
  constructor(memserver: Memserver, image: string, options: LazyOptions = {}) {
    this.#memserver = memserver;
    this.#image = image;
    this.#options = options;
  }

  /** What shells that are to become its children must have. */
  get preempt(): boolean | undefined {
    return this.#options.preempt;
  }

  async give(shell: Shell, id: string, signal: AbortSignal | undefined): Promise<GivenMemory> {
    const child = new LazyChild(this.#memserver, shell, id, this.#image, this.#options);
    try {
      await child.start(signal);
      return child;
    } catch (error) {
      await child.release(false);
      throw error;
    }
  }
}

type MigrationStatus = QmpEvent<"MIGRATION">["data"]["status"];

class LazyChild implements GivenMemory {
  readonly lost: Promise<FlurryError>;
  readonly #memserver: Memserver;
  readonly #shell: Shell;
  readonly #id: string;
  readonly #image: string;
  readonly #options: LazyOptions;
  readonly #resources = new AsyncDisposableStack();
  readonly #stop = new AbortController();
  readonly #lose: (error: FlurryError) => void;
  #status: MigrationStatus = "none";
  #statusChanged = Promise.withResolvers<void>();
  /** How often it has come to stand still, and of these the last time that it went on. */
  #pauses = 0;
  #wentOn = 0;
  #recovering = false;
  #recoveries = 0;
  #exited = false;
  /** It has all of its memory. */
  #complete = false;

  constructor(memserver: Memserver, shell: Shell, id: string, image: string, options: LazyOptions) {
    this.#memserver = memserver;
    this.#shell = shell;
    this.#id = id;
    this.#image = image;
    this.#options = options;
    const { promise, resolve } = Promise.withResolvers<FlurryError>();
    this.lost = promise;
    this.#lose = resolve;
    this.#resources.use(memserver.hold(image));
    this.#resources.use(shell.qemu.qmp.on("MIGRATION", ({ data }) => this.#changed(data.status)));
    this.#resources.use(
      memserver.watch(
        id,
        (event) => this.#told(event),
        (death) => this.#recover(death),
      ),
    );
    void shell.qemu.exited.then(() => {
      this.#exited = true;
      this.#stop.abort();
    });
  }

  async start(signal: AbortSignal | undefined): Promise<void> {
    await this.#attach(this.#shell.memserverPath, false, signal);
  }

  async release(sound: boolean): Promise<void> {
    this.#stop.abort();
    // What one asked for that was lost, if only for a while, is not all that it needs.
    await this.#memserver.detach(this.#id, sound && !this.#exited && this.#pauses === 0);
    await this.#resources.disposeAsync();
  }

  async #attach(socket: string, recover: boolean, signal: AbortSignal | undefined): Promise<void> {
    const { workingSet = true, backgroundAfterMs = 5000, measure = false } = this.#options;
    const { backgroundBytesPerSecond = 128 * 1024 * 1024 } = this.#options;
    const bytesPerSecond = Number.isFinite(backgroundBytesPerSecond) ? backgroundBytesPerSecond : null;
    await this.#memserver.attach(
      {
        child: this.#id,
        image: this.#image,
        socket,
        preempt: this.#shell.preempt,
        recover,
        background: { afterMs: backgroundAfterMs, bytesPerSecond },
        workingSet,
        measure,
      },
      { signal },
    );
  }

  /** Said by QEMU alone, and maybe heard later than the memserver's word that it has gone on. */
  get #standsStill(): boolean {
    return this.#status === "postcopy-paused" && this.#pauses > this.#wentOn;
  }

  #changed(status: MigrationStatus): void {
    this.#status = status;
    if (status === "postcopy-paused") this.#pauses += 1;
    this.#statusChanged.resolve();
    this.#statusChanged = Promise.withResolvers();
    // Whatever the memserver says or does not say: the child stands still, or soon will.
    if (status === "postcopy-paused") this.#recover(undefined);
    // It has no state to go on from. QEMU means to exit, and hangs when its main loop waits for a page.
    if (status === "failed") {
      this.#lose(new FlurryError("MEMSERVER_FAILED", "it lost its memserver before its CPUs ran"));
    }
  }

  #told(event: ControlEvent): void {
    if (event.event === "complete") this.#complete = true;
    if (event.event === "lost") this.#recover(undefined);
    if (event.event === "failed") {
      this.#lose(new FlurryError("PAGES_UNAVAILABLE", `its memory cannot be had: ${event.error.message}`));
    }
  }

  #recover(death: FlurryError | undefined): void {
    if (this.#recovering || this.#complete || this.#stop.signal.aborted) return;
    this.#recovering = true;
    void this.#recoverInTime(death).finally(() => {
      this.#recovering = false;
      // It may have been lost again in the same moment.
      if (this.#standsStill) this.#recover(undefined);
    });
  }

  /** Goes on until the child has a memserver again, is gone, or has stood still for too long. */
  async #recoverInTime(death: FlurryError | undefined): Promise<void> {
    const { recoverMs = 10_000 } = this.#options;
    const late = AbortSignal.timeout(recoverMs);
    const signal = AbortSignal.any([late, this.#stop.signal]);
    let last: unknown = death;
    for (let wait = RETRY_MS; !signal.aborted; wait = Math.min(wait * 2, MOST_RETRY_MS)) {
      try {
        await this.#recoverOnce(signal);
        logger.info("Child {child} has a memserver again", { child: this.#id });
        return;
      } catch (error) {
        if (!signal.aborted) last = error;
        if (codeOf(error) === "PAGES_UNAVAILABLE") break;
      }
      await delay(wait, undefined, { signal }).catch(() => undefined);
    }
    if (this.#stop.signal.aborted || this.#complete) return;
    const reason =
      last instanceof Error ? last.message : "its QEMU did not say that it had stopped, or did not answer";
    this.#lose(
      new FlurryError("MEMSERVER_FAILED", `no memserver could take it on within ${recoverMs} ms: ${reason}`, {
        cause: last,
      }),
    );
  }

  async #recoverOnce(signal: AbortSignal): Promise<void> {
    while (!this.#standsStill) {
      if (this.#status === "completed") {
        this.#complete = true;
        return;
      }
      await this.#nextStatus(signal);
    }
    const pause = this.#pauses;
    const { qemu } = this.#shell;
    const path = `${qemu.dir}/r${this.#recoveries++}`;
    // Out of band: the main loop may be the one that waits for a page.
    await qemu.qmp.executeOob("migrate-recover", { uri: `unix:${path}` }, { signal });
    await this.#attach(path, true, signal);
    this.#wentOn = pause;
  }

  async #nextStatus(signal: AbortSignal): Promise<void> {
    const aborted = Promise.withResolvers<never>();
    const onAbort = () =>
      aborted.reject(new FlurryError("ABORTED", "Aborted by the caller", { cause: signal.reason }));
    signal.addEventListener("abort", onAbort, { once: true });
    if (signal.aborted) onAbort();
    try {
      await Promise.race([this.#statusChanged.promise, aborted.promise]);
    } finally {
      signal.removeEventListener("abort", onAbort);
    }
  }
}
