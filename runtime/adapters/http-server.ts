import { FlurryError } from "../../errors/errors.ts";
import { serveOnBun } from "./bun.ts";
import { serveOnDeno } from "./deno.ts";
import type { ListenOptions, RuntimeServer } from "./runtime-server.ts";

/** A server that listens. */
export interface HttpServer {
  url: string;
  port: number;
  /** Accepts no more connections, lets the requests that are under way end for `graceMs`, then cuts them. */
  stop(graceMs: number): Promise<void>;
}

/**
 * Serves HTTP on the runtime that this is. Bodies of requests are read, and those of answers made, as
 * fast as the other side is.
 *
 * @throws FlurryError BAD_ARGUMENT when nobody can listen there
 */
export async function listen(options: ListenOptions): Promise<HttpServer> {
  const { hostname } = options;
  let server: RuntimeServer;
  try {
    server = await (process.versions.bun === undefined ? serveOnDeno(options) : serveOnBun(options));
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new FlurryError("BAD_ARGUMENT", `Cannot listen on ${hostname}:${options.port}: ${reason}`, {
      hint: "choose another address with --listen HOST:PORT; port 0 takes any that is free",
      cause,
    });
  }
  const host = hostname.includes(":") ? `[${hostname}]` : hostname;
  return {
    url: `http://${host}:${server.port}`,
    port: server.port,
    stop: (graceMs) => stop(server, graceMs),
  };
}

async function stop(server: RuntimeServer, graceMs: number): Promise<void> {
  const { promise: late, resolve } = Promise.withResolvers<"late">();
  const timer = setTimeout(() => resolve("late"), graceMs);
  const drained = server.drain();
  if ((await Promise.race([drained, late])) === "late") await server.cut();
  clearTimeout(timer);
}
