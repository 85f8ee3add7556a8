/** The typed client of a gateway, over fetch. See docs/client.md. */
export type * from "../api/mod.ts";
export { FlurryClient } from "./client.ts";
export { GatewayError } from "./gateway-error.ts";
export type { EventsOptions, LogsOptions, ResultsOptions } from "./job-streams.ts";
export { hasEnded } from "./job-streams.ts";
export type { ArtifactContent, CallOptions, ListOptions, SubmitOptions, Submitted } from "./jobs.ts";
export type { ClientOptions } from "./transport.ts";
export type { VmFileContent, VmOutput } from "./vms.ts";
