import { type HeaderList, headersProblem } from "../protocol/worker/headers.ts";
import { knownBody } from "./response-shim.ts";

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
  const headers = sentHeaders(result, method);
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

/**
 * A response's headers as Bun's own server would send them: the length is the body's, whatever the worker
 * says; a body without a type has one; and a type that came with the body is left out where no body is.
 */
function sentHeaders(response: Response, method: string): [string, string][] {
  const headers = [...response.headers] as [string, string][];
  const known = knownBody(response);
  const { status, body } = response;
  const sent = headers.filter(([name, value]) => {
    if (name === "content-length") return status === 304 || (method === "HEAD" && body === null);
    const isImplied = name === "content-type" && value === known?.implied;
    return !(isImplied && (method === "HEAD" || known?.size === 0));
  });
  if (bodiless.has(status) && status !== 205) return sent;
  const { fallback } = known ?? {};
  if (fallback && known?.size && method !== "HEAD" && !response.headers.has("content-type")) {
    sent.push(["content-type", fallback]);
  }
  const size = body === null || status === 205 ? 0 : known?.size;
  const isSaid = sent.some(([name]) => name === "content-length");
  if (size !== undefined && !isSaid) sent.push(["content-length", String(size)]);
  return sent;
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
