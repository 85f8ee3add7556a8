import { type ErrorCode, lookupCode } from "../../errors/codes.ts";
import { FlurryError } from "../../errors/errors.ts";
import { Problem } from "../api/mod.ts";

/** Most characters of a foreign answer that an error shows. */
const SHOWN_CHARS = 200;
/** Most bytes of an answer that are read to make an error of it. */
const MAX_PROBLEM_BYTES = 64 * 1024;

/** A request that the gateway refused, or an answer that is none of a gateway's. */
export class GatewayError extends FlurryError {
  /** HTTP status. */
  readonly status: number;
  /** Names the request in the gateway's log. */
  readonly requestId: string | undefined;
  /** Whether the same request may succeed later. */
  readonly retryable: boolean;
  /** How long the gateway asks to wait before that. */
  readonly retryAfterMs: number | undefined;

  constructor(
    code: ErrorCode,
    message: string,
    options: {
      status: number;
      requestId?: string | undefined;
      retryable?: boolean;
      retryAfterMs?: number | undefined;
      hint?: string | undefined;
      cause?: unknown;
    },
  ) {
    super(code, message, { cause: options.cause, ...(options.hint !== undefined && { hint: options.hint }) });
    this.status = options.status;
    this.requestId = options.requestId;
    this.retryable = options.retryable ?? false;
    this.retryAfterMs = options.retryAfterMs;
  }
}

/** Makes the error of an answer from 400 on: the problem that it holds, or GATEWAY_FAILED. Reads its body. */
export async function errorOf(response: Response): Promise<GatewayError> {
  const { status } = response;
  const retryAfterMs = retryAfter(response.headers.get("retry-after"));
  const text = await startOf(response, MAX_PROBLEM_BYTES);
  const problem = Problem.safeParse(parseJson(text));
  if (!problem.success) return foreignAnswer(response, text, { retryAfterMs });
  const { code, detail, hint, requestId, retryable, errors = [] } = problem.data;
  const about = { status, requestId, retryable, retryAfterMs, hint };
  if (!lookupCode(code)) {
    const message = `The gateway answered ${status} with the unknown code "${code}": ${detail}`;
    return new GatewayError("GATEWAY_FAILED", message, about);
  }
  const missing = errors.filter(({ path, message }) => !(detail.includes(path) && detail.includes(message)));
  const places = missing.map(({ path, message }) => `${path}: ${message}`).join("; ");
  return new GatewayError(code as ErrorCode, places === "" ? detail : `${detail} (${places})`, about);
}

/** The error of an answer that does not look like a gateway's. */
export function foreignAnswer(
  response: Response,
  text: string,
  more: { cause?: unknown; retryAfterMs?: number | undefined } = {},
): GatewayError {
  const shown = text.length > SHOWN_CHARS ? `${text.slice(0, SHOWN_CHARS)}…` : text;
  const path = response.url === "" ? "" : ` to ${response.url}`;
  const message = `The answer${path} is not one of a gateway's: ${response.status} ${JSON.stringify(shown)}`;
  const retryable = response.status === 429 || response.status === 503;
  return new GatewayError("GATEWAY_FAILED", message, { status: response.status, retryable, ...more });
}

/** Milliseconds that a Retry-After header asks for: whole seconds or a date (RFC 9110, 10.2.3). */
export function retryAfter(header: string | null, now = Date.now()): number | undefined {
  if (header === null) return undefined;
  if (/^\d{1,9}$/.test(header)) return Number(header) * 1000;
  const at = Date.parse(header);
  return Number.isNaN(at) ? undefined : Math.max(0, at - now);
}

/** The first bytes of a body as text; the rest is not fetched. */
async function startOf(response: Response, bytes: number): Promise<string> {
  const decoder = new TextDecoder();
  let text = "";
  let read = 0;
  try {
    for await (const chunk of response.body ?? []) {
      text += decoder.decode(chunk.subarray(0, bytes - read), { stream: true });
      read += chunk.byteLength;
      if (read >= bytes) break;
    }
  } catch (cause) {
    // The status alone tells enough; what broke the rest of the body is shown beside it.
    return `${text} [lost: ${cause instanceof Error ? cause.message : String(cause)}]`;
  }
  return text + decoder.decode();
}

export function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
