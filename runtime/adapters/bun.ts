import type { ListenOptions, RuntimeServer } from "./runtime-server.ts";

/** Seconds after which a connection without a request is closed. */
const IDLE_SECONDS = 120;

export function serveOnBun({ hostname, port, fetch, onError }: ListenOptions): RuntimeServer {
  const server = Bun.serve({
    hostname,
    port,
    development: false,
    // Outside of development Bun would share the port with any other that does.
    reusePort: false,
    idleTimeout: IDLE_SECONDS,
    // The gateway has limits of its own, and answers with a problem.
    maxRequestBodySize: Number.MAX_SAFE_INTEGER,
    fetch(request, self) {
      // A stream may be silent for as long as it likes, and its reader slow.
      self.timeout(request, 0);
      return fetch(request);
    },
    error: onError,
  });
  return {
    port: server.port ?? port,
    drain: () => server.stop(false),
    cut: () => server.stop(true),
  };
}
