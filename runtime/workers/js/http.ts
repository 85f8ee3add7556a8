import type { WorkerRequest, WorkerResponse } from "../../../guest-agent/protocol/worker/mod.ts";

/** Headers of one connection, which end where it ends (RFC 9110, 7.6.1). */
const HOP_BY_HOP = new Set([
  ...["connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"],
]);

/** Statuses whose answers have no body (Fetch standard, null body status). */
const WITHOUT_BODY = new Set([101, 204, 205, 304]);

/** What a worker is asked, as it came. */
export function workerRequest(request: Request, url = request.url): WorkerRequest {
  return {
    method: request.method,
    url,
    headers: [...request.headers].filter(([name]) => !HOP_BY_HOP.has(name.toLowerCase())),
    ...(request.body && { body: request.body }),
  };
}

/**
 * A worker's answer, and when all of its body has been read, or given up.
 *
 * @param method - of the request: one to HEAD has no body, whatever the worker says
 */
export function answerOf(
  method: string,
  response: WorkerResponse,
): { answer: Response; read: Promise<void> } {
  const headers = new Headers();
  for (const [name, value] of response.headers)
    if (!HOP_BY_HOP.has(name.toLowerCase())) headers.append(name, value);
  const { body, read } = watched(response.body);
  const { status } = response;
  if (method !== "HEAD" && !WITHOUT_BODY.has(status))
    return { answer: new Response(body, { status, headers }), read };
  void body.cancel();
  return { answer: new Response(null, { status, headers }), read };
}

/** A body that tells of its end. */
function watched(source: ReadableStream<Uint8Array>): {
  body: ReadableStream<Uint8Array>;
  read: Promise<void>;
} {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  const reader = source.getReader();
  const body = new ReadableStream<Uint8Array>(
    {
      async pull(controller) {
        try {
          const { done, value } = await reader.read();
          if (value) controller.enqueue(value);
          if (!done) return;
          controller.close();
          resolve();
        } catch (error) {
          controller.error(error);
          reject(error);
        }
      },
      async cancel(reason) {
        resolve();
        await reader.cancel(reason);
      },
    },
    { highWaterMark: 0 },
  );
  promise.catch(() => undefined);
  return { body, read: promise };
}
