import type { WorkerShape } from "../protocol/worker/guest-messages.ts";

/** What a module gave to one `serve`. */
export interface ServedHandler {
  shape: Extract<WorkerShape, "bun-serve" | "deno-serve">;
  fetch: (request: Request) => unknown;
}

/** What a module gave to `Bun.serve` and `Deno.serve` while it loaded. */
export class ServeRegistry {
  readonly #handlers: { handler: ServedHandler; server: object }[] = [];
  readonly #registered = Promise.withResolvers<void>();

  /** Settles with the first one. */
  get registered(): Promise<void> {
    return this.#registered.promise;
  }

  /** The one that gets the requests: who serves twice has, say, metrics on a second port. */
  get first(): ServedHandler | undefined {
    return this.#handlers[0]?.handler;
  }

  get count(): number {
    return this.#handlers.length;
  }

  add(handler: ServedHandler, server: object): void {
    this.#handlers.push({ handler, server });
    this.#registered.resolve();
  }

  of(server: unknown): ServedHandler | undefined {
    return this.#handlers.find((entry) => entry.server === server)?.handler;
  }
}

/** The handler behind a server that a module exports. */
export function servedBy(registry: ServeRegistry, server: unknown): ServedHandler | undefined {
  return registry.of(server);
}
