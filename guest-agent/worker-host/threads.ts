let alive = 0;

/** Threads of the worker that run: each has generators of its own, which nobody renews in a fork. */
export function liveThreads(): number {
  return alive;
}

/** Counts threads. Has to be called before anything imports `node:worker_threads`. */
export function watchThreads(): void {
  const NativeWorker = globalThis.Worker;
  globalThis.Worker = class Worker extends NativeWorker {
    constructor(...args: ConstructorParameters<typeof NativeWorker>) {
      super(...args);
      alive++;
      this.addEventListener("close", () => alive--, { once: true });
    }
  };
  const threads = process.getBuiltinModule("node:worker_threads");
  const NodeWorker = threads.Worker;
  threads.Worker = class Worker extends NodeWorker {
    constructor(...args: ConstructorParameters<typeof NodeWorker>) {
      super(...args);
      alive++;
      this.once("exit", () => alive--);
    }
  };
}
