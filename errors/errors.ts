import { type ErrorCode, lookupCode } from "./codes.ts";

/**
 * The one error class that callers of Flurry catch. `code` is stable and documented in
 * `errors/codes.ts`; the message says what happened and to what; `hint` says what to do.
 */
export class FlurryError extends Error {
  readonly code: ErrorCode;
  readonly hint: string | undefined;
  /** When the same may succeed, for those who are turned away for now. */
  readonly retryAfterSeconds: number | undefined;

  constructor(
    code: ErrorCode,
    message: string,
    options: { cause?: unknown; hint?: string; retryAfterSeconds?: number } = {},
  ) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.name = "FlurryError";
    this.code = code;
    this.hint = options.hint;
    this.retryAfterSeconds = options.retryAfterSeconds;
  }
}

/** What any thrown value means to the outside: a stable code, an HTTP status and an exit code. */
export interface ErrorReport {
  code: string;
  message: string;
  hint: string | undefined;
  httpStatus: number;
  exitCode: number;
}

/** What the system's own errors mean where nobody has put one of ours in their place. */
const systemCodes: Readonly<Record<string, ErrorCode>> = { ENOSPC: "NO_SPACE", EDQUOT: "NO_SPACE" };

/**
 * Describes any thrown value. Errors of rooms that import nothing of the project (QmpError,
 * AgentError) take part through their `code`; what has no known code is reported as INTERNAL.
 */
export function describeError(error: unknown): ErrorReport {
  const message = error instanceof Error ? error.message : String(error);
  const rawCode = codeOf(error) ?? "INTERNAL";
  const meant = systemCodes[rawCode] ?? rawCode;
  const code = lookupCode(meant) ? meant : "INTERNAL";
  const entry = lookupCode(code)!;
  const hint = error instanceof FlurryError ? error.hint : undefined;
  return { code, message, hint, httpStatus: entry.http, exitCode: entry.exit };
}

/** The string `code` of an error, if it has one. */
export function codeOf(error: unknown): string | undefined {
  if (typeof error !== "object" || error === null || !("code" in error)) return undefined;
  return typeof error.code === "string" ? error.code : undefined;
}
