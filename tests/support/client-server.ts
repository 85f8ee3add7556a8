import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";

/** A request as it arrived. */
export interface SeenRequest {
  method: string;
  /** Path with the query. */
  path: string;
  headers: Record<string, string | undefined>;
  body: string;
}

/** How a scripted server answers the n-th request, from 0. */
export type Answer = (
  response: ServerResponse,
  request: SeenRequest,
  n: number,
  raw: IncomingMessage,
) => void | Promise<void>;

/** A server that does what a test says, such as to break off in the middle. */
export class ScriptedServer implements AsyncDisposable {
  readonly url: string;
  readonly seen: SeenRequest[] = [];
  readonly #server: ReturnType<typeof createServer>;

  private constructor(server: ReturnType<typeof createServer>) {
    this.#server = server;
    this.url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  }

  static async start(answer: Answer): Promise<ScriptedServer> {
    let self: ScriptedServer | undefined;
    const server = createServer(async (raw, response) => {
      const chunks: Buffer[] = [];
      try {
        for await (const chunk of raw) chunks.push(chunk);
      } catch {
        // The client gave its request up: there is nobody to answer.
        return;
      }
      const request: SeenRequest = {
        method: raw.method ?? "",
        path: raw.url ?? "",
        headers: raw.headers as Record<string, string | undefined>,
        body: Buffer.concat(chunks).toString(),
      };
      self?.seen.push(request);
      await answer(response, request, (self?.seen.length ?? 1) - 1, raw);
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    self = new ScriptedServer(server);
    return self;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const closed = new Promise<void>((resolve) => this.#server.close(() => resolve()));
    this.#server.closeAllConnections();
    await closed;
  }
}

/** Answers with JSON. */
export function sendJson(
  response: ServerResponse,
  body: unknown,
  status = 200,
  headers: Record<string, string> = {},
): void {
  response.writeHead(status, { "content-type": "application/json", ...headers });
  response.end(JSON.stringify(body));
}

/** Answers with a problem of a gateway. */
export function sendProblem(
  response: ServerResponse,
  status: number,
  code: string,
  more: Record<string, unknown> = {},
  headers: Record<string, string> = {},
): void {
  const problem = { type: "about:blank", title: code, status, detail: `It is ${code}`, code };
  const body = { ...problem, requestId: "req-1", retryable: status === 429 || status === 503, ...more };
  sendJson(response, body, status, { "content-type": "application/problem+json", ...headers });
}

/** A job as a gateway shows it. */
export function sampleJob(more: Record<string, unknown> = {}): Record<string, unknown> {
  const at = "2026-01-31T12:00:00.000Z";
  return {
    id: SAMPLE_ID,
    state: "running",
    reason: "A task runs",
    worker: { image: "base", command: ["true"] },
    priority: 5,
    tags: [],
    retry: { maxAttempts: 1, backoff: { initialMs: 1000, factor: 2, maxMs: 60_000 } },
    tasks: { total: 3, queued: 0, running: 3, retrying: 0, succeeded: 0, failed: 0, canceled: 0 },
    createdAt: at,
    changedAt: at,
    ...more,
  };
}

export const SAMPLE_ID = "job_0123456789abcdef01234567";
