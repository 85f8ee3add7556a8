/** The stable codes that this room raises; each is listed in the project's table of codes. */
export type QmpErrorCode = "QMP_CLOSED" | "QMP_TIMEOUT" | "QMP_COMMAND_FAILED" | "QMP_PROTOCOL" | "ABORTED";

/** What a QmpError may carry beside its code and message. */
export interface QmpErrorDetails {
  /** QEMU's error class (`GenericError`, `CommandNotFound`, ...); only with QMP_COMMAND_FAILED. */
  qmpClass?: string | undefined;
  /** The command that was refused, timed out, was aborted or lost its connection. */
  command?: string | undefined;
  cause?: unknown;
}

/**
 * The one error class of the QMP client.
 *
 * - `QMP_CLOSED`: the connection is gone; the message ends with what QEMU wrote to stderr, if known.
 * - `QMP_TIMEOUT`: no answer or event in time; the connection lives on.
 * - `QMP_COMMAND_FAILED`: QEMU refused the command; see `qmpClass`.
 * - `QMP_PROTOCOL`: the peer sent something that is no QMP; the connection was closed.
 * - `ABORTED`: the caller's signal fired, or the wait was disposed.
 */
export class QmpError extends Error {
  readonly code: QmpErrorCode;
  readonly qmpClass: string | undefined;
  readonly command: string | undefined;

  constructor(code: QmpErrorCode, message: string, details: QmpErrorDetails = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.name = "QmpError";
    this.code = code;
    this.qmpClass = details.qmpClass;
    this.command = details.command;
  }
}
