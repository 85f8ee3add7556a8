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
    async fetch(request, self) {
      // A stream may be silent for as long as it likes, and its reader slow.
      self.timeout(request, 0);
      const answer = await fetch(request);
      return request.method === "HEAD" ? withoutLength(answer) : answer;
    },
    error: onError,
  });
  return {
    port: server.port ?? port,
    drain: () => server.stop(false),
    cut: () => server.stop(true),
  };
}

/**
 * An answer to HEAD whose length is not known. Of one without a body Bun says that it would have none, even
 * where GET has one (RFC 9110, 8.6).
 */
function withoutLength(answer: Response): Response {
  const { body, status, headers } = answer;
  const isEmpty = status === 204 || status === 205 || status === 304;
  if (body !== null || isEmpty || headers.has("content-length")) return answer;
  return new Response(new ReadableStream({}, { highWaterMark: 0 }), { status, headers });
}
