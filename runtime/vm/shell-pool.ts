import { throwIfAborted } from "./qemu-process.ts";
import { Shell, type ShellSpec } from "./shell.ts";

export interface ShellPoolOptions {
  /**
   * Shells that are kept waiting: whenever one is taken, another is started.
   *
   * @default 0
   */
  keep?: number;
  /** Shells started at the same time. @default the host's cores */
  parallel?: number;
}

/** A shell with where it came from. */
export interface TakenShell {
  shell: Shell;
  /** True when it was waiting; false when the caller waited for its start. */
  warm: boolean;
}

/** Shells that wait for one memory image. A shell that dies while it waits is dropped, not given out. */
export class ShellPool implements AsyncDisposable {
  #spec: ShellSpec;
  readonly #parallel: number;
  readonly #waiting: Shell[] = [];
  readonly #starting = new Set<Promise<void>>();
  readonly #ending = new Set<Promise<void>>();
  readonly #stop = new AbortController();
  #keep: number;
  /** Above this number, shells that wait are ended. */
  #most = Number.POSITIVE_INFINITY;
  #lastError: unknown;
  /** Callers of take() that wait for a shell that is being started. */
  #takers = 0;

  constructor(spec: ShellSpec, options: ShellPoolOptions = {}) {
    this.#spec = spec;
    this.#keep = options.keep ?? 0;
    this.#parallel = options.parallel ?? spec.host.cores;
    this.#refill();
  }

  /** Shells that wait now. */
  get warm(): number {
    return this.#waiting.length;
  }

  /**
   * Changes how many shells are kept, and waits until there are as many. With a smaller number, those
   * that wait already go on waiting to be taken.
   *
   * @throws FlurryError as `Shell.start`; ABORTED, also when the pool is disposed meanwhile
   */
  async keep(count: number, signal?: AbortSignal): Promise<void> {
    this.#keep = count;
    this.#most = Number.POSITIVE_INFINITY;
    this.#lastError = undefined;
    for (;;) {
      // Again in each round: one that has started may be dead by now.
      this.#refill();
      if (this.#waiting.length >= this.#keep) return;
      throwIfAborted(signal);
      throwIfAborted(this.#stop.signal);
      if (this.#lastError) throw this.#lastError;
      await anyOf(this.#starting, signal);
    }
  }

  /** Changes how many shells are kept, without waiting for it: missing ones are started, others ended. */
  resize(count: number): void {
    this.#keep = count;
    this.#most = count;
    this.#refill();
    this.#trim();
  }

  /** Has all shells from now on be of another kind, and ends those that wait. */
  rebind(spec: ShellSpec): void {
    this.#spec = spec;
    for (const shell of this.#waiting.splice(0)) this.#endLater(shell);
    this.#refill();
  }

  #trim(): void {
    for (const shell of this.#waiting.splice(this.#most + this.#takers)) this.#endLater(shell);
  }

  #endLater(shell: Shell): void {
    const ending = shell[Symbol.asyncDispose]();
    this.#ending.add(ending);
    void ending.finally(() => this.#ending.delete(ending));
  }

  /** A waiting shell, else a new one. It is the caller's from then on. */
  async take(signal?: AbortSignal): Promise<TakenShell> {
    throwIfAborted(signal);
    throwIfAborted(this.#stop.signal);
    const shell = this.#takeWaiting() ?? (await this.#nextStarted(signal));
    if (shell) return shell;
    const started = await Shell.start(this.#spec, signal);
    // Whatever kept shells from starting is over.
    this.#lastError = undefined;
    this.#refill();
    return { shell: started, warm: false };
  }

  #takeWaiting(warm = true): TakenShell | undefined {
    const shell = this.#waiting.shift();
    if (!shell) return undefined;
    // After the caller's own work of this turn: a start takes CPU that the child can use now.
    setImmediate(() => this.#refill());
    return { shell, warm };
  }

  /** A shell that is being started anyway comes sooner than another one, unless it is somebody else's. */
  async #nextStarted(signal: AbortSignal | undefined): Promise<TakenShell | undefined> {
    while (this.#starting.size > this.#takers) {
      this.#takers += 1;
      try {
        await anyOf(this.#starting, signal);
      } finally {
        this.#takers -= 1;
      }
      throwIfAborted(signal);
      throwIfAborted(this.#stop.signal);
      const taken = this.#takeWaiting(false);
      if (taken) return taken;
    }
    return undefined;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort();
    await Promise.all(this.#starting);
    await Promise.all(this.#waiting.splice(0).map((shell) => shell[Symbol.asyncDispose]()));
    await Promise.all(this.#ending);
  }

  #refill(): void {
    while (
      !this.#stop.signal.aborted &&
      !this.#lastError &&
      this.#starting.size < this.#parallel &&
      this.#waiting.length + this.#starting.size < this.#keep
    ) {
      const start = this.#startOne();
      this.#starting.add(start);
      void start.finally(() => {
        this.#starting.delete(start);
        this.#refill();
      });
    }
  }

  async #startOne(): Promise<void> {
    try {
      const shell = await Shell.start(this.#spec, this.#stop.signal);
      this.#waiting.push(shell);
      void shell.qemu.exited.then(() => this.#drop(shell));
      this.#trim();
    } catch (error) {
      // Kept for whoever waits in keep(); take() starts its own and meets the reason itself.
      if (!this.#stop.signal.aborted) this.#lastError = error;
    }
  }

  async #drop(shell: Shell): Promise<void> {
    const at = this.#waiting.indexOf(shell);
    if (at < 0) return;
    this.#waiting.splice(at, 1);
    // Its place is filled at the next take() or keep(), so that shells which all die are no endless loop.
    await shell[Symbol.asyncDispose]();
  }
}

/** Waits until one of them is done, or the signal fires. */
async function anyOf(promises: Iterable<Promise<void>>, signal: AbortSignal | undefined): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>();
  const onAbort = () => resolve();
  signal?.addEventListener("abort", onAbort, { once: true });
  try {
    await Promise.race([...promises, promise]);
  } finally {
    signal?.removeEventListener("abort", onAbort);
  }
}
