import { compileRoutes, type RouteTable } from "./routes.ts";
import type { ServeRegistry } from "./serve-registry.ts";

type Handler = (request: Request, second: unknown) => unknown;

/** What a module that serves is told its address is. Nothing listens there. */
const HOST = "localhost";
const DEFAULT_PORT = 8000;

interface BunOptions {
  fetch?: Handler;
  error?: (error: unknown) => unknown;
  routes?: Readonly<Record<string, unknown>>;
  /** What `routes` was called before. */
  static?: Readonly<Record<string, unknown>>;
  port?: number | string;
  hostname?: string;
}

/** Puts a `Bun.serve` in place that keeps the handler instead of listening. */
export function shimBunServe(registry: ServeRegistry): void {
  Object.defineProperty(Bun, "serve", {
    value: (options: BunOptions) => bunServer(options, registry),
    writable: true,
  });
}

function bunServer(initial: BunOptions, registry: ServeRegistry): object {
  let options = checkBunOptions(initial);
  const port = portOf(initial.port);
  const fetch = async (request: Request) => {
    try {
      const handler = options.table(request) ?? options.fetch;
      // As Bun's own server answers where neither a route nor a handler is.
      if (handler === undefined) return new Response(null, { status: 404 });
      return await handler.call(server, request, server);
    } catch (error) {
      if (options.error === undefined) throw error;
      return await options.error.call(server, error);
    }
  };
  const server = {
    port,
    hostname: initial.hostname ?? HOST,
    url: new URL(`http://${HOST}:${port}/`),
    id: "",
    development: false,
    pendingRequests: 0,
    pendingWebSockets: 0,
    protocol: "http",
    fetch: (request: Request | string) => fetch(typeof request === "string" ? new Request(request) : request),
    reload: (next: BunOptions) => {
      options = checkBunOptions({ ...options, ...next });
      return server;
    },
    stop: async () => undefined,
    // No request can become a WebSocket here; those that ask for it are answered before.
    upgrade: () => false,
    publish: () => 0,
    subscriberCount: () => 0,
    requestIP: () => null,
    timeout: () => undefined,
    ref: () => undefined,
    unref: () => undefined,
    [Symbol.dispose]: () => undefined,
  };
  registry.add({ shape: "bun-serve", fetch }, server);
  return server;
}

function checkBunOptions(options: BunOptions): BunOptions & { table: RouteTable } {
  const { fetch, routes = {}, static: fixed = {} } = options;
  const hasRoutes = options.routes !== undefined || options.static !== undefined;
  if (typeof fetch !== "function" && !hasRoutes) {
    throw new TypeError('Cannot serve: Bun.serve needs a "fetch" function or "routes"');
  }
  return { ...options, table: compileRoutes({ ...fixed, ...routes }) };
}

interface DenoOptions {
  handler?: Handler;
  onError?: (error: unknown) => unknown;
  onListen?: (address: object) => void;
  port?: number;
  hostname?: string;
}

/**
 * Puts a `Deno` in place with the little that a module for Deno Deploy needs to start. Only for a bundle
 * that calls `Deno.serve`: to others the name would say that this is Deno.
 */
export function shimDeno(registry: ServeRegistry): void {
  const deno = {
    serve: (...args: unknown[]) => denoServer(args, registry),
    env: {
      get: (name: string) => process.env[name],
      has: (name: string) => process.env[name] !== undefined,
      set: (name: string, value: string) => {
        process.env[name] = value;
      },
      delete: (name: string) => {
        delete process.env[name];
      },
      toObject: () => ({ ...process.env }),
    },
    args: [],
    exit: (code?: number) => process.exit(code),
    addSignalListener: () => undefined,
    removeSignalListener: () => undefined,
  };
  Object.defineProperty(globalThis, "Deno", { value: deno, writable: true, configurable: true });
}

function denoServer(args: readonly unknown[], registry: ServeRegistry): object {
  const options = (args.find((arg) => typeof arg === "object" && arg !== null) ?? {}) as DenoOptions;
  const handler = (args.find((arg) => typeof arg === "function") as Handler | undefined) ?? options.handler;
  if (typeof handler !== "function") throw new TypeError("Cannot serve: Deno.serve needs a handler");
  const addr = {
    transport: "tcp",
    hostname: options.hostname ?? HOST,
    port: portOf(options.port),
  };
  const finished = Promise.withResolvers<void>();
  const info = {
    remoteAddr: { transport: "tcp", hostname: "127.0.0.1", port: 0 },
    completed: Promise.resolve(),
  };
  const fetch = async (request: Request) => {
    try {
      return await handler(request, info);
    } catch (error) {
      if (options.onError === undefined) throw error;
      return await options.onError(error);
    }
  };
  const shutdown = async () => finished.resolve();
  const server = {
    addr,
    port: addr.port,
    url: `http://${HOST}:${addr.port}/`,
    finished: finished.promise,
    shutdown,
    stop: shutdown,
    ref: () => undefined,
    unref: () => undefined,
    [Symbol.asyncDispose]: shutdown,
  };
  registry.add({ shape: "deno-serve", fetch }, server);
  const { onListen } = options;
  if (onListen) queueMicrotask(() => onListen(addr));
  return server;
}

function portOf(port: number | string | undefined): number {
  const number = Number(port ?? process.env.PORT ?? DEFAULT_PORT);
  return Number.isInteger(number) && number > 0 ? number : DEFAULT_PORT;
}
