/** How an error shows outside: HTTP status and the exit code of the CLI. */
export interface CodeEntry {
  http: number;
  /** 2: the user's input; 3: something missing on this machine; 4: a task failed; 5: Flurry, QEMU or the guest failed; 130: interrupted */
  exit: number;
}

/**
 * Every stable error code. A code is never given a second meaning; a code that is no longer
 * raised is deleted.
 */
export const errorCodes = {
  INTERNAL: { http: 500, exit: 5 },
  ABORTED: { http: 499, exit: 130 },

  BAD_ARGUMENT: { http: 400, exit: 2 },
  RECIPE_INVALID: { http: 400, exit: 2 },
  IMAGE_NOT_FOUND: { http: 404, exit: 2 },
  IMAGE_BUILD_FAILED: { http: 500, exit: 5 },
  REQUIREMENT_MISSING: { http: 500, exit: 3 },

  QEMU_NOT_FOUND: { http: 500, exit: 3 },
  QEMU_START_FAILED: { http: 500, exit: 5 },
  QEMU_EXITED: { http: 500, exit: 5 },
  NO_SPACE: { http: 507, exit: 5 },
  BOOT_TIMEOUT: { http: 500, exit: 5 },
  BOOT_FAILED: { http: 500, exit: 5 },

  FREEZE_FAILED: { http: 500, exit: 5 },
  DESCRIPTOR_INVALID: { http: 422, exit: 5 },
  STREAM_INVALID: { http: 422, exit: 5 },
  FINGERPRINT_MISMATCH: { http: 409, exit: 5 },
  IMAGE_CORRUPT: { http: 500, exit: 5 },
  FORK_FAILED: { http: 500, exit: 5 },
  CHILD_UNPROVEN: { http: 500, exit: 5 },
  CHILD_DIED: { http: 500, exit: 5 },
  MEMSERVER_FAILED: { http: 500, exit: 5 },
  PAGES_UNAVAILABLE: { http: 503, exit: 5 },
  PEER_FAILED: { http: 502, exit: 5 },
  ADMISSION_REFUSED: { http: 429, exit: 5 },

  QMP_CLOSED: { http: 500, exit: 5 },
  QMP_TIMEOUT: { http: 504, exit: 5 },
  QMP_COMMAND_FAILED: { http: 500, exit: 5 },
  QMP_PROTOCOL: { http: 500, exit: 5 },

  AGENT_CLOSED: { http: 500, exit: 5 },
  AGENT_TIMEOUT: { http: 504, exit: 5 },
  AGENT_PROTOCOL: { http: 500, exit: 5 },
  AGENT_REFUSED: { http: 500, exit: 5 },

  TASK_FAILED: { http: 500, exit: 4 },
  TASK_TIMEOUT: { http: 504, exit: 4 },
  WORKER_TIMEOUT: { http: 504, exit: 4 },
  WORKER_LOAD_FAILED: { http: 422, exit: 2 },
  UPGRADE_UNSUPPORTED: { http: 501, exit: 2 },
  INFRASTRUCTURE_FAILED: { http: 500, exit: 5 },

  JOB_NOT_FOUND: { http: 404, exit: 2 },
  JOB_ACTIVE: { http: 409, exit: 2 },
  TASK_NOT_FOUND: { http: 404, exit: 2 },
  ARTIFACT_NOT_FOUND: { http: 404, exit: 2 },
  WORKER_NOT_FOUND: { http: 404, exit: 2 },
  RECEIPT_NOT_FOUND: { http: 404, exit: 2 },
  VM_NOT_FOUND: { http: 404, exit: 2 },
  CHECKPOINT_NOT_FOUND: { http: 404, exit: 2 },
  CHECKPOINT_EXISTS: { http: 409, exit: 2 },
  FILE_NOT_FOUND: { http: 404, exit: 2 },
  VMS_UNSUPPORTED: { http: 501, exit: 2 },
  SECRET_NOT_FOUND: { http: 404, exit: 2 },
  KEY_NOT_FOUND: { http: 404, exit: 2 },
  LAST_ADMIN_KEY: { http: 409, exit: 2 },
  IDEMPOTENCY_MISMATCH: { http: 422, exit: 2 },
  QUEUE_FULL: { http: 429, exit: 5 },
  LIMIT_REACHED: { http: 429, exit: 5 },
  WEBHOOK_FORBIDDEN: { http: 422, exit: 2 },
  OUTBOUND_FORBIDDEN: { http: 403, exit: 2 },
  OUTBOUND_FAILED: { http: 502, exit: 4 },

  STORE_FAILED: { http: 500, exit: 5 },
  STORE_TOO_NEW: { http: 500, exit: 3 },
  DATA_IN_USE: { http: 500, exit: 5 },

  ROUTE_NOT_FOUND: { http: 404, exit: 2 },
  METHOD_NOT_ALLOWED: { http: 405, exit: 2 },
  MEDIA_TYPE_UNSUPPORTED: { http: 415, exit: 2 },
  BODY_TIMEOUT: { http: 408, exit: 5 },
  BODY_TOO_LARGE: { http: 413, exit: 2 },
  RANGE_NOT_SATISFIABLE: { http: 416, exit: 2 },
  UNAUTHENTICATED: { http: 401, exit: 2 },
  FORBIDDEN: { http: 403, exit: 2 },
  KEYS_REQUIRED: { http: 500, exit: 2 },
  SHUTTING_DOWN: { http: 503, exit: 5 },
  NOT_READY: { http: 503, exit: 5 },
  GATEWAY_UNREACHABLE: { http: 502, exit: 5 },
  GATEWAY_FAILED: { http: 502, exit: 5 },
} as const satisfies Record<string, CodeEntry>;

export type ErrorCode = keyof typeof errorCodes;

/** The entry of a code, or undefined for a string that is no code of ours. */
export function lookupCode(code: string | undefined): CodeEntry | undefined {
  if (code === undefined || !Object.hasOwn(errorCodes, code)) return undefined;
  return errorCodes[code as ErrorCode];
}
