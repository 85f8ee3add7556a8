import type { WorkerContext } from "./context.ts";

type ForkCallback = (context: WorkerContext) => unknown;

const callbacks: ForkCallback[] = [];

/**
 * Offers libraries what `onFork()` is for a module, without an import that only Flurry has:
 * `globalThis[Symbol.for("flurry.onFork")]?.(callback)`.
 */
export function offerOnFork(): void {
  Object.defineProperty(globalThis, Symbol.for("flurry.onFork"), {
    value: (callback: ForkCallback) => {
      if (typeof callback !== "function") throw new TypeError("onFork needs a function");
      callbacks.push(callback);
    },
  });
}

/** Calls what libraries have given, one after the other. @throws what the first of them throws that fails */
export async function runForkCallbacks(context: WorkerContext): Promise<void> {
  for (const callback of callbacks) await callback(context);
}
