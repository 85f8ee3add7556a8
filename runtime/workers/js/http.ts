import { Buffer } from "node:buffer";
import type { WorkerRequest, WorkerResponse } from "../../../guest-agent/protocol/worker/mod.ts";

/** Headers of one connection, which end where it ends (RFC 9110, 7.6.1). */
export const HOP_BY_HOP = new Set([
  ...["connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"],
]);

/** Statuses whose answers have no body (Fetch standard, null body status). */
export const WITHOUT_BODY = new Set([101, 204, 205, 304]);

/** What a worker is asked, as it came. */
export function workerRequest(request: Request, url = request.url): WorkerRequest {
  return {
    method: request.method,
    url,
    headers: [...request.headers].filter(([name]) => !HOP_BY_HOP.has(name.toLowerCase())),
    ...(request.body && { body: request.body }),
  };
}

/** Longest body that is given on in one piece, with its length: of a stream, Bun's server tells none. */
const WHOLE_MAX = 1 << 20;

/** A worker's answer, and when all of its body has been read, or given up. */
export interface ReadAnswer {
  answer: Response;
  read: Promise<void>;
}

/**
 * What to give on of a worker's answer. A body whose length the worker host knows is waited for if it is at
 * most 1 MiB, and comes with its length; all others are streamed.
 *
 * @param method - of the request: one to HEAD has no body, whatever the worker says
 * @throws what the body breaks off with, while it is waited for
 */
export async function answerOf(method: string, response: WorkerResponse): Promise<ReadAnswer> {
  const headers = new Headers();
  for (const [name, value] of response.headers)
    if (!HOP_BY_HOP.has(name.toLowerCase())) headers.append(name, value);
  const { status } = response;
  const length = Number(headers.get("content-length") ?? Number.NaN);
  if (method === "HEAD" || WITHOUT_BODY.has(status)) {
    void response.body.cancel();
    // Of a stream nobody knows the length: a server must not say that it is 0.
    const isStream = method === "HEAD" && !WITHOUT_BODY.has(status) && Number.isNaN(length);
    const body = isStream ? new ReadableStream<Uint8Array>({}, { highWaterMark: 0 }) : null;
    return { answer: new Response(body, { status, headers }), read: Promise.resolve() };
  }
  headers.delete("content-length");
  const reader = response.body.getReader();
  const parts: Uint8Array[] = [];
  // What a guest says of the length is believed only as far as it is so.
  for (let left = length <= WHOLE_MAX ? length : -1; left >= 0; ) {
    const { done, value } = await reader.read();
    if (done) {
      const answer = new Response(Buffer.concat(parts), { status, headers });
      return { answer, read: Promise.resolve() };
    }
    parts.push(value);
    left -= value.length;
  }
  const { body, read } = watched(reader, parts);
  return { answer: new Response(body, { status, headers }), read };
}

type Reader = ReadableStreamDefaultReader<Uint8Array>;

/** A body that begins with these parts, and tells of its end. */
function watched(reader: Reader, parts: Uint8Array[]): { body: ReadableStream; read: Promise<void> } {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  const body = new ReadableStream<Uint8Array>(
    {
      async pull(controller) {
        const part = parts.shift();
        if (part) return controller.enqueue(part);
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
