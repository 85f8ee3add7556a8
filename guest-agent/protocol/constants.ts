/**
 * What both ends of the channel agree on. The text is PROTOCOL.md; the guest's copy is
 * guest-agent/init/src/protocol.h, and a unit test compares the two by name.
 */
export const PROTOCOL_VERSION = 3;

/** Name of the virtio-serial port. */
export const PORT_NAME = "flurry.agent";

/**
 * Starts a session, wherever it stands: no frame to the guest has these bytes in it. 0xff and 0xc1
 * occur neither in UTF-8 nor as MessagePack tags, lengths are below 2^17, and data is cut inside of
 * them.
 */
export const MARKER = Uint8Array.of(0xff, 0xc1, 0xc1, 0xc1, 0x46, 0x4c, 0x52, 0x0a);

/** Sizes in bytes, counts in pieces. */
export const limits = {
  /** Largest payload of a frame, without its four bytes of length. */
  FRAME_MAX: 65536,
  /** Most bytes in one data message: with its head it fits one write of virtio_console. */
  CHUNK_MAX: 32704,
  /** Unacknowledged bytes of one stream on their way to the host. */
  WINDOW_TO_HOST: 262144,
  /** The same towards the guest. */
  WINDOW_TO_GUEST: 131072,
  /** Operations (programs and transfers) at once. */
  OPS_MAX: 64,
  /** Connections of programs in the guest at once. */
  CALLS_MAX: 192,
  /** Strings in argv, and in env. */
  ARGS_MAX: 1024,
  PATH_MAX: 4096,
  /** Directory levels that a listing follows. */
  DEPTH_MAX: 64,
  VM_ID_MAX: 128,
  /** Random bytes that one identity may bring, and has to. */
  ENTROPY_MAX: 128,
  ENTROPY_MIN: 32,
  /** Each file of an SSH host key. */
  SSH_KEY_MAX: 4096,
  /** Processes with a fork hook. */
  HOOKS_MAX: 64,
} as const;

/** Ids from here on are the agent's: of calls. Those of the host are below. */
export const CALL_IDS = 0x80000000;

export const messageTypes = {
  HELLO: 1,
  PING: 2,
  PONG: 3,
  IDENTIFY: 4,
  IDENTIFIED: 5,
  QUIESCE: 6,
  QUIESCED: 7,
  SHUTDOWN: 8,
  STOPPING: 9,
  RELEASE: 10,
  EXEC: 16,
  STARTED: 17,
  EXIT: 18,
  KILL: 19,
  CALL: 20,
  PUT: 32,
  GET: 33,
  LIST: 34,
  FILE: 35,
  DATA: 48,
  END: 49,
  CREDIT: 50,
  CANCEL: 51,
  OK: 52,
  ERROR: 53,
} as const;

/** Streams of one operation: towards the guest, and the two towards the host. */
export const streams = { IN: 0, OUT: 1, ERR: 2 } as const;

/** Codes of the guest's error messages. */
export const remoteCodes = [
  "SYS",
  "BAD_MESSAGE",
  "UNKNOWN_TYPE",
  "FRAME_TOO_LARGE",
  "BUSY",
  "LIMIT",
  "NO_SUCH_ID",
  "ID_IN_USE",
  "FLOW",
  "STATE",
] as const;

export type StreamNumber = (typeof streams)[keyof typeof streams];
