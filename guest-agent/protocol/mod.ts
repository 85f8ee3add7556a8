/** The host's end of the guest agent's channel; PROTOCOL.md says what travels over it. */

export type { GuestCall } from "./call.ts";
export { AgentClient, type AgentClientOptions } from "./client.ts";
export type { Inheritance } from "./connection.ts";
export { limits, PORT_NAME, PROTOCOL_VERSION } from "./constants.ts";
export type { WaitOptions } from "./deadline.ts";
export { AgentError, type AgentErrorCode } from "./errors.ts";
export type { AgentFile, FileSource, PutOptions } from "./files.ts";
export type { GuestIdentity, HookReceipt, IdentityReceipt } from "./identity.ts";
export type { InheritedProcess } from "./inherited.ts";
export type { AgentEntry, HelloInfo } from "./messages.ts";
export type { AgentProcess, ExecOptions, ExitStatus } from "./process.ts";
export type { RunOptions, RunResult } from "./run.ts";
export { signalNumber } from "./signals.ts";
