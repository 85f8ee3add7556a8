/** QMP client: commands, events and their types for one QEMU process. */
export {
  type EventStreamOptions,
  type QmpArguments,
  QmpClient,
  type QmpClientOptions,
  type QmpCommandName,
  type QmpOobCommandName,
  type QmpReturns,
} from "./client.ts";
export { QmpError, type QmpErrorCode } from "./errors.ts";
export type { EventWait, ExpectOptions, QmpEvent, QmpEventName } from "./event-hub.ts";
export type { EventReader } from "./event-stream.ts";
export { LineBuffer } from "./line-buffer.ts";
export type { QmpGreeting, QmpRawEvent, QmpVersion } from "./messages.ts";
export type { QmpTransport, TransportSink } from "./transport.ts";
export type { WaitOptions } from "./wait-limit.ts";
