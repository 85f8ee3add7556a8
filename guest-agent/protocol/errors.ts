/**
 * AGENT_CLOSED: the channel is gone, the message says why. AGENT_TIMEOUT: no answer in time.
 * AGENT_REFUSED: the guest said no (`remote`, and `errno` where a system call failed).
 * AGENT_PROTOCOL: the guest broke the protocol; the channel is closed. ABORTED: the caller's signal.
 * BAD_ARGUMENT: a request that cannot be sent.
 */
export type AgentErrorCode =
  | "AGENT_CLOSED"
  | "AGENT_TIMEOUT"
  | "AGENT_REFUSED"
  | "AGENT_PROTOCOL"
  | "ABORTED"
  | "BAD_ARGUMENT";

/** Whatever goes wrong between host and guest agent. */
export class AgentError extends Error {
  readonly code: AgentErrorCode;
  /** Name of the failed system call's error, such as `ENOENT`. */
  readonly errno: string | undefined;
  /** The guest's own code; one of `remoteCodes` if the guest is ours. */
  readonly remote: string | undefined;

  constructor(
    code: AgentErrorCode,
    message: string,
    details: { cause?: unknown; errno?: string | undefined; remote?: string | undefined } = {},
  ) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.name = "AgentError";
    this.code = code;
    this.errno = details.errno;
    this.remote = details.remote;
  }
}
