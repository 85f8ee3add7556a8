import type { ListenOptions, RuntimeServer } from "./runtime-server.ts";

/** What is used of Deno: its types are not those of this project's compiler. */
declare const Deno: {
  serve(
    options: {
      hostname: string;
      port: number;
      signal: AbortSignal;
      onListen: () => void;
      onError: (error: unknown) => Response;
    },
    handler: (request: Request) => Response | Promise<Response>,
  ): { addr: { port: number }; shutdown(): Promise<void>; finished: Promise<void> };
};

export function serveOnDeno({ hostname, port, fetch, onError }: ListenOptions): RuntimeServer {
  const cutting = new AbortController();
  const { signal } = cutting;
  // Deno would print where it listens; the caller does.
  const server = Deno.serve({ hostname, port, signal, onListen: () => undefined, onError }, fetch);
  return {
    port: server.addr.port,
    drain: () => server.shutdown(),
    async cut() {
      cutting.abort();
      await server.finished;
    },
  };
}
