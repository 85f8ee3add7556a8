/** The host's end of a worker's channel; README.md says what travels over it. */
export type { WaitOptions } from "../deadline.ts";
export type { WorkerBody } from "./body-pump.ts";
export { WorkerClient } from "./client.ts";
export type {
  OutboundHandler,
  OutboundRequest,
  OutboundResponse,
  WarmedRequest,
  WarmInfo,
  WorkerClientOptions,
  WorkerFetchOptions,
  WorkerRequest,
  WorkerResponse,
} from "./client-types.ts";
export { WORKER_PORT_NAME, WORKER_PROTOCOL_VERSION, workerLimits } from "./constants.ts";
export { WorkerError, type WorkerErrorCode } from "./errors.ts";
export type { DoneInfo, LoadedInfo, WorkerFault, WorkerHostInfo, WorkerLog } from "./guest-messages.ts";
export type { HeaderList } from "./headers.ts";
export type { ForkInfo, VmInfo } from "./host-messages.ts";
