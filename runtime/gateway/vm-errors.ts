import { type ErrorCode, lookupCode } from "../../errors/codes.ts";
import { codeOf, FlurryError } from "../../errors/errors.ts";

/**
 * What a VM has failed of, as its owner is told. What the guest's kernel refuses (no such program, no right to it)
 * is about what was asked for.
 */
export function ofVm(error: unknown): unknown {
  const code = codeOf(error);
  if (error instanceof FlurryError || !(error instanceof Error) || !lookupCode(code)) return error;
  const refused = code === "AGENT_REFUSED" && errnoOf(error) !== undefined;
  return new FlurryError(refused ? "BAD_ARGUMENT" : (code as ErrorCode), error.message, { cause: error });
}

/** As `ofVm`, of a file that is read. */
export function ofVmFile(error: unknown): unknown {
  const errno = errnoOf(error);
  if (error instanceof FlurryError || !(error instanceof Error)) return error;
  if (errno !== "ENOENT" && errno !== "ENOTDIR") return ofVm(error);
  return new FlurryError("FILE_NOT_FOUND", error.message, { cause: error });
}

/** Name of a failed system call's error in the guest, such as `ENOENT`. */
export function errnoOf(error: unknown): string | undefined {
  if (typeof error !== "object" || error === null || !("errno" in error)) return undefined;
  return typeof error.errno === "string" ? error.errno : undefined;
}
