import { type HeaderList, headersProblem } from "../protocol/worker/headers.ts";

/** The head of an answer, and its body's stream. */
export interface AnswerHead {
  status: number;
  headers: HeaderList;
  body: ReadableStream<Uint8Array> | null;
}

/** RFC 9110: answers that have no body, whatever the handler gave. */
const bodiless = new Set([204, 205, 304]);

/**
 * What to send for a handler's result.
 *
 * @throws TypeError if it is no response, or one that cannot be sent
 */
export function answerHead(result: unknown, method: string): AnswerHead {
  if (!isResponse(result)) {
    const what = result === undefined ? "nothing" : `a value of type ${typeof result}`;
    throw new TypeError(`The worker's fetch must give a Response, it gave ${what}`);
  }
  const { status } = result;
  if (status < 200 || status > 599) throw new TypeError(`A response cannot have the status ${status}`);
  const headers = [...result.headers] as [string, string][];
  const problem = headersProblem(headers);
  if (problem) throw new TypeError(`The worker's response has ${problem}`);
  const { body } = result;
  if (result.bodyUsed || body?.locked) {
    throw new TypeError("The body of the worker's response was read already");
  }
  if (body !== null && (method === "HEAD" || bodiless.has(status))) {
    body.cancel().catch(() => undefined); // the source's own trouble, and of no use to anyone
    return { status, headers, body: null };
  }
  return { status, headers, body };
}

/** Responses of another realm, or of a library's own class, are as good. */
function isResponse(value: unknown): value is Response {
  return (
    value instanceof Response ||
    (typeof value === "object" &&
      value !== null &&
      "status" in value &&
      "headers" in value &&
      value.headers instanceof Headers)
  );
}

/** An answer of ours (RFC 9457). It says nothing of the worker's code: the log does. */
export function problemAnswer(
  status: 500 | 501,
  code: "WORKER_FAILED" | "UPGRADE_UNSUPPORTED",
  requestId: string,
): Response {
  const detail =
    code === "WORKER_FAILED"
      ? "The worker failed to answer the request"
      : "A worker cannot take over the connection: WebSockets are not supported";
  const title = status === 500 ? "Internal Server Error" : "Not Implemented";
  const problem = { type: "about:blank", title, status, detail, code, requestId, retryable: false };
  return new Response(JSON.stringify(problem), {
    status,
    headers: { "content-type": "application/problem+json" },
  });
}

/**
 * Repairs a gap of Bun 1.4: `new Response("text")` has no Content-Type before Bun's own server sends it,
 * while the Fetch standard ("extract a body") gives it one at once, and workers rely on that.
 */
export function shimResponse(): void {
  const native = globalThis.Response;
  globalThis.Response = new Proxy(native, {
    construct(target, args, newTarget) {
      const self = newTarget === globalThis.Response ? target : newTarget;
      const response: Response = Reflect.construct(target, args, self);
      if (typeof args[0] === "string" && !response.headers.has("content-type")) {
        response.headers.set("content-type", "text/plain;charset=UTF-8");
      }
      return response;
    },
  });
}
