import type { HandlerName, WorkerShape } from "../protocol/worker/guest-messages.ts";
import type { WorkerContext } from "./context.ts";
import { type ServedHandler, type ServeRegistry, servedBy } from "./serve-registry.ts";

type Env = Readonly<Record<string, string>>;

/** What an event of a schedule says; as Workers have it. */
export interface ScheduledEvent {
  cron: string;
  /** Milliseconds since 1970. */
  scheduledTime: number;
}

/** A worker's handlers, each in one form, whatever shape the module has. */
export interface WorkerHandlers {
  shape: WorkerShape;
  setup?: ((ctx: WorkerContext) => unknown) | undefined;
  fetch?: ((request: Request, env: Env, ctx: WorkerContext) => unknown) | undefined;
  task?: ((input: unknown, ctx: WorkerContext) => unknown) | undefined;
  scheduled?: ((event: ScheduledEvent, env: Env, ctx: WorkerContext) => unknown) | undefined;
  onFork?: ((ctx: WorkerContext) => unknown) | undefined;
}

/** The handlers that a worker has, by name. */
export function namesOf(handlers: WorkerHandlers): HandlerName[] {
  const names: readonly HandlerName[] = ["setup", "fetch", "task", "scheduled", "onFork"];
  return names.filter((name) => handlers[name] !== undefined);
}

/**
 * Finds a module's handlers: in its default export (an object, or a function that answers requests), in
 * its named exports, or in what it gave to `Bun.serve` or `Deno.serve`. Undefined if it has none.
 */
export function findHandlers(
  module: Readonly<Record<string, unknown>>,
  served: ServeRegistry,
): WorkerHandlers | undefined {
  const main = module.default;
  const registered = servedBy(served, main);
  const named = fromObject(module);
  if (registered) return { ...named, ...fromObject(main), shape: registered.shape, fetch: registered.fetch };
  if (typeof main === "function" && !isClass(main)) {
    return { ...named, shape: "function", fetch: (request, env, ctx) => main(request, env, ctx) };
  }
  const own = { ...named, ...fromObject(main) };
  const first = served.first;
  if (own.fetch === undefined && first) return { ...own, ...onlyFetch(first) };
  return hasAny(own) ? { ...own, shape: "object" } : undefined;
}

function onlyFetch({ shape, fetch }: ServedHandler): Pick<WorkerHandlers, "shape" | "fetch"> & {
  shape: WorkerShape;
} {
  return { shape, fetch };
}

/** Only what is there: an absent handler must not hide one of another source. */
function fromObject(source: unknown): Omit<WorkerHandlers, "shape"> {
  if (typeof source !== "object" || source === null) return {};
  const holder = source as Readonly<Record<string, unknown>>;
  const names: readonly HandlerName[] = ["setup", "fetch", "task", "scheduled", "onFork"];
  const found = names.flatMap((name) => {
    const handler = holder[name];
    // Called on its object: a Hono app and many others need their `this`.
    return typeof handler === "function"
      ? [[name, (...args: unknown[]) => handler.apply(source, args)] as const]
      : [];
  });
  return Object.fromEntries(found);
}

function hasAny(handlers: Omit<WorkerHandlers, "shape">): boolean {
  return Object.keys(handlers).some((name) => name !== "shape");
}

/** A class cannot be called; its source says so. */
function isClass(value: unknown): boolean {
  return typeof value === "function" && /^class\b/.test(Function.prototype.toString.call(value));
}
