/** Codes of guest-agent/protocol/CALLS.md. */
export type CallErrorCode =
  | "BAD_CALL"
  | "FORK_DENIED"
  | "TICKET_REFUSED"
  | "TICKET_UNKNOWN"
  | "TICKET_EXPIRED"
  | "TICKET_USED"
  | "CHECKPOINT_UNKNOWN"
  | "FORK_FAILED"
  | "FORKED"
  | "NOT_A_CHILD"
  | "JOIN_TIMEOUT";

/** Why a program's call is refused; it is told so, and goes on. */
export class CallError extends Error {
  override name = "CallError";
  readonly code: CallErrorCode;

  constructor(code: CallErrorCode, message: string, options: { cause?: unknown } = {}) {
    super(message, options);
    this.code = code;
  }

  /** As a line of the conversation. (Engines have a `line` of their own in errors.) */
  asLine(): string {
    return `error ${this.code} ${this.message.replaceAll(/[^\x20-\x7e]+/g, " ").slice(0, 1000)}\n`;
  }
}
