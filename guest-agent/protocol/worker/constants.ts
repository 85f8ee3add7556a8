/** What both ends of the worker channel agree on. The text is README.md. */
export const WORKER_PROTOCOL_VERSION = 3;

/** Name of the virtio-serial port. */
export const WORKER_PORT_NAME = "flurry.worker";

/** Sizes in bytes unless said otherwise. What a frame, a chunk and a window hold is in `../constants.ts`. */
export const workerLimits = {
  /** Requests and tasks under way at once, in pieces. */
  REQUESTS_MAX: 128,
  /** The worker's own requests to others under way at once, in pieces. */
  OUTBOUND_MAX: 64,
  METHOD_MAX: 32,
  URL_MAX: 16_384,
  /** Headers of one head, in pieces. */
  HEADERS_MAX: 256,
  /** Names and values of one head together, as UTF-8. */
  HEADER_BYTES_MAX: 32_768,
  /** One request's or response's body, altogether. It is never held whole. */
  BODY_MAX: 1 << 30,
  /** A task's input as JSON. It is held whole. */
  TASK_MAX: 8 << 20,
  /** A task's value as JSON. It is held whole, and kept with the task's result. */
  VALUE_MAX: 1 << 20,
  /** Unacknowledged payload of LOG and FAULT messages on its way to the host. */
  LOG_WINDOW: 262_144,
  /** Of that, what only FAULT messages may use: an endless log must not hide why a worker died. */
  FAULT_RESERVE: 65_536,
  /** One log record's text; the rest is cut off. */
  LOG_TEXT_MAX: 8192,
  /** An error's message, and its stack; the rest is cut off. */
  MESSAGE_MAX: 2048,
  STACK_MAX: 16_384,
  /** Names, ids and the like. */
  NAME_MAX: 256,
  /** Variables, and secrets, in pieces. */
  VARIABLES_MAX: 1024,
} as const;

/** Ids from here on are the guest's to choose, for its own requests; below are the host's. */
export const OUTBOUND_ID_MIN = 0x8000_0000;

export const redirectModes = ["follow", "manual", "error"] as const;
/** What becomes of a redirect; as in the Fetch standard. */
export type RedirectMode = (typeof redirectModes)[number];

/** How long a request's `waitUntil` promises may take after its response, in milliseconds. */
export const WAIT_UNTIL_MS = 30_000;

/** The same for those of `scheduled()`. The host that has asked gives up long before. */
export const SCHEDULED_WAIT_MS = 86_400_000;

/** DATA, END, CREDIT, CANCEL and ERROR are the agent's. */
export const workerTypes = {
  HELLO: 1,
  PING: 2,
  PONG: 3,
  QUIESCE: 6,
  QUIESCED: 7,
  SHUTDOWN: 8,
  STOPPING: 9,
  DATA: 48,
  END: 49,
  CREDIT: 50,
  CANCEL: 51,
  ERROR: 53,
  ABORT: 54,
  LOAD: 64,
  LOADED: 65,
  SETUP: 66,
  SET_UP: 67,
  FORKED: 68,
  READY: 69,
  REQUEST: 80,
  RESPONSE: 81,
  TASK: 82,
  SCHEDULED: 83,
  DONE: 84,
  LOG: 96,
  FAULT: 97,
  OUTBOUND: 112,
  ANSWER: 113,
} as const;

export type WorkerType = keyof typeof workerTypes;

/** Codes of the worker host's ERROR messages. */
export const workerRemoteCodes = [
  /** A frame that is no message, or a field of it is bad. */
  "BAD_MESSAGE",
  "UNKNOWN_TYPE",
  "FRAME_TOO_LARGE",
  "ID_IN_USE",
  /** More data than credit, or more credit than a window. */
  "FLOW",
  /** More than REQUESTS_MAX under way. */
  "LIMIT",
  /** The two ends speak different versions. */
  "VERSION",
  /** Quiesce, while requests or tasks run. */
  "BUSY",
  /** Not now: nothing is loaded, or something is loaded already. */
  "STATE",
  /** The worker called `process.exit`. */
  "EXITED",
  "LOAD_FAILED",
  "SETUP_FAILED",
  "FORK_FAILED",
  /** The worker has no handler of this kind. */
  "NO_HANDLER",
  "BODY_TOO_LARGE",
  /** The worker's own error. */
  "WORKER_FAILED",
] as const;

export type WorkerRemoteCode = (typeof workerRemoteCodes)[number];

/** Codes of the host's ERROR messages, which end a request of the guest's own. */
export type OutboundCode =
  /** There is no such way out for this worker. */
  | "FORBIDDEN"
  /** It was tried, and went wrong. */
  | "FAILED"
  /** More than OUTBOUND_MAX under way. */
  | "LIMIT"
  | "BODY_TOO_LARGE";

export const logLevels = ["debug", "info", "warn", "error"] as const;
export type LogLevel = (typeof logLevels)[number];

export const logStreams = ["stdout", "stderr"] as const;
export type LogStream = (typeof logStreams)[number];

export const faultKinds = ["uncaughtException", "unhandledRejection", "exit"] as const;
export type FaultKind = (typeof faultKinds)[number];
