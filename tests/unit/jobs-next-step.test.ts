import { describe, expect, test } from "bun:test";
import { errorCodes } from "../../errors/codes.ts";
import { FlurryError } from "../../errors/errors.ts";
import {
  backoffMs,
  classOf,
  type Ending,
  type FailureClass,
  MAX_INFRASTRUCTURE_FAILURES,
  nextStep,
} from "../../runtime/jobs/next-step.ts";

/** Every code has its place here: who adds one decides whose fault it is. */
const classes: Record<FailureClass, (keyof typeof errorCodes)[]> = {
  attempt: ["TASK_FAILED", "TASK_TIMEOUT", "WORKER_TIMEOUT", "OUTBOUND_FAILED"],
  aborted: ["ABORTED"],
  user: [
    "BAD_ARGUMENT",
    "RECIPE_INVALID",
    "IMAGE_NOT_FOUND",
    "ADMISSION_REFUSED",
    "JOB_NOT_FOUND",
    "JOB_ACTIVE",
    "TASK_NOT_FOUND",
    "ARTIFACT_NOT_FOUND",
    "WORKER_NOT_FOUND",
    "RECEIPT_NOT_FOUND",
    "VM_NOT_FOUND",
    "CHECKPOINT_NOT_FOUND",
    "CHECKPOINT_EXISTS",
    "FILE_NOT_FOUND",
    "VMS_UNSUPPORTED",
    "WORKER_LOAD_FAILED",
    "UPGRADE_UNSUPPORTED",
    "OUTBOUND_FORBIDDEN",
    "SECRET_NOT_FOUND",
    "KEY_NOT_FOUND",
    "LAST_ADMIN_KEY",
    "IDEMPOTENCY_MISMATCH",
    "WEBHOOK_FORBIDDEN",
    "ROUTE_NOT_FOUND",
    "METHOD_NOT_ALLOWED",
    "MEDIA_TYPE_UNSUPPORTED",
    "BODY_TOO_LARGE",
    "RANGE_NOT_SATISFIABLE",
    "UNAUTHENTICATED",
    "FORBIDDEN",
    "KEYS_REQUIRED",
  ],
  infrastructure: [
    "BODY_TIMEOUT",
    "INTERNAL",
    "IMAGE_BUILD_FAILED",
    "REQUIREMENT_MISSING",
    "QEMU_NOT_FOUND",
    "QEMU_START_FAILED",
    "QEMU_EXITED",
    "NO_SPACE",
    "BOOT_TIMEOUT",
    "BOOT_FAILED",
    "FREEZE_FAILED",
    "DESCRIPTOR_INVALID",
    "STREAM_INVALID",
    "FINGERPRINT_MISMATCH",
    "IMAGE_CORRUPT",
    "FORK_FAILED",
    "CHILD_UNPROVEN",
    "CHILD_DIED",
    "MEMSERVER_FAILED",
    "PAGES_UNAVAILABLE",
    "PEER_FAILED",
    "QMP_CLOSED",
    "QMP_TIMEOUT",
    "QMP_COMMAND_FAILED",
    "QMP_PROTOCOL",
    "AGENT_CLOSED",
    "AGENT_TIMEOUT",
    "AGENT_PROTOCOL",
    "AGENT_REFUSED",
    "INFRASTRUCTURE_FAILED",
    "QUEUE_FULL",
    "LIMIT_REACHED",
    "STORE_FAILED",
    "STORE_TOO_NEW",
    "DATA_IN_USE",
    "SHUTTING_DOWN",
    "NOT_READY",
    "GATEWAY_UNREACHABLE",
    "GATEWAY_FAILED",
  ],
};

const left = { stdout: "so far", stdoutTruncated: false, artifacts: [] };
const once = claim({ maxAttempts: 1 });

function claim({ maxAttempts = 3, attempt = 1, infrastructureFailures = 0 }) {
  const backoff = { initialMs: 1000, factor: 2, maxMs: 60_000 };
  return { attempt, infrastructureFailures, retry: { maxAttempts, backoff } };
}

function failed(code: keyof typeof errorCodes, stage: "prepare" | "run" = "run"): Ending {
  return { error: new FlurryError(code, `It was ${code}`), stage, left };
}

const highest = () => 1 - Number.EPSILON;

describe("classOf()", () => {
  test("has exactly one class for every code", () => {
    const listed = Object.values(classes).flat();
    expect(listed.toSorted()).toEqual(Object.keys(errorCodes).toSorted() as typeof listed);
    for (const [name, codes] of Object.entries(classes)) {
      for (const code of codes) expect(`${code} ${classOf(code)}`).toBe(`${code} ${name}`);
    }
  });

  test("takes what is no code of ours for the infrastructure's", () => {
    expect(classOf("ECONNRESET")).toBe("infrastructure");
    expect(classOf("toString")).toBe("infrastructure");
  });
});

describe("nextStep()", () => {
  test("records a command that exited with 0", () => {
    expect(nextStep(once, { exit: { exitCode: 0 }, left }, Math.random)).toEqual({
      state: "succeeded",
      reason: "Exited with 0",
      result: { ...left, exitCode: 0 },
    });
  });

  test("records a task that returned a value", () => {
    expect(nextStep(once, { exit: { value: "null" }, left }, Math.random)).toEqual({
      state: "succeeded",
      reason: "Returned a value",
      result: { ...left, exitCode: undefined, value: "null" },
    });
  });

  test("retries a command that failed, and records its last attempt", () => {
    const exit = { exitCode: 3 };
    expect(nextStep(claim({ attempt: 1 }), { exit, left }, highest)).toEqual({
      state: "retrying",
      reason: "Exited with 3",
      error: undefined,
      delayMs: 1000,
    });
    expect(nextStep(claim({ attempt: 2 }), { exit, left }, highest)).toMatchObject({ delayMs: 2000 });
    expect(nextStep(claim({ attempt: 3 }), { exit, left }, highest)).toEqual({
      state: "failed",
      reason: "Exited with 3",
      result: { ...left, exitCode: 3, signal: undefined },
    });
  });

  test("retries a command that a signal ended", () => {
    const exit = { signal: "SIGSEGV" };
    expect(nextStep(claim({}), { exit, left }, highest)).toMatchObject({ state: "retrying" });
    expect(nextStep(once, { exit, left }, highest)).toMatchObject({
      state: "failed",
      reason: "Ended by SIGSEGV",
      result: { signal: "SIGSEGV", stdout: "so far" },
    });
  });

  test.each(classes.attempt)("uses an attempt for %s of a running task", (code) => {
    const error = { code, message: `It was ${code}` };
    expect(nextStep(claim({}), failed(code), highest)).toMatchObject({ state: "retrying", error });
    expect(nextStep(once, failed(code), highest)).toMatchObject({ state: "failed", result: { error } });
  });

  test.each(classes.attempt)("fails at once for %s of a worker's warm-up", (code) => {
    expect(nextStep(claim({}), failed(code, "prepare"), highest)).toMatchObject({
      state: "failed",
      result: { error: { code } },
    });
  });

  test.each(classes.user)("fails at once for %s", (code) => {
    expect(nextStep(claim({ maxAttempts: 100 }), failed(code), highest)).toMatchObject({
      state: "failed",
      result: { error: { code } },
    });
  });

  test.each(classes.infrastructure)("uses no attempt for %s", (code) => {
    for (const stage of ["prepare", "run"] as const) {
      expect(nextStep(once, failed(code, stage), highest)).toEqual({
        state: "queued",
        reason: `It was ${code}`,
        error: { code, message: `It was ${code}` },
        delayMs: 500,
      });
    }
  });

  test("gives a task up that the infrastructure has failed too often, with the last reason", () => {
    const counts = Array.from({ length: MAX_INFRASTRUCTURE_FAILURES }, (_, n) => n);
    const ends = counts.map((infrastructureFailures) =>
      nextStep(claim({ infrastructureFailures }), failed("CHILD_DIED"), highest),
    );
    const states: string[] = ends.map(({ state }) => state);
    expect(states).toEqual([...counts.slice(1).map(() => "queued"), "failed"]);
    expect(ends.slice(0, -1).map((end) => "delayMs" in end && end.delayMs)).toEqual([
      500, 1000, 2000, 4000, 8000, 16_000, 30_000,
    ]);
    expect(ends.at(-1)).toMatchObject({
      result: {
        error: {
          code: "INFRASTRUCTURE_FAILED",
          message: "The infrastructure failed this task 8 times, last with CHILD_DIED: It was CHILD_DIED",
        },
      },
    });
  });

  test("cancels, or puts back, what it was asked to stop", () => {
    const canceled = { why: "canceled", reason: "Canceled by ci" } as const;
    expect(nextStep(once, { ...failed("ABORTED"), stop: canceled }, highest)).toEqual({
      state: "canceled",
      reason: "Canceled by ci",
    });
    const shutdown = { why: "shutdown", reason: "The gateway ends" } as const;
    expect(nextStep(once, { ...failed("ABORTED"), stop: shutdown }, highest)).toEqual({
      state: "queued",
      reason: "The gateway ends",
      delayMs: 0,
    });
  });

  test("takes NULs out of what a guest has said", () => {
    const error = new FlurryError("TASK_FAILED", "No file a\0b");
    expect(nextStep(once, { error, stage: "run", left }, highest)).toMatchObject({
      reason: "No file a\ufffdb",
      result: { error: { message: "No file a\ufffdb" } },
    });
  });

  test("keeps the result of a command that ended before the cancellation reached it", () => {
    const stop = { why: "canceled", reason: "Canceled by ci" } as const;
    expect(nextStep(once, { exit: { exitCode: 0 }, left, stop }, highest)).toMatchObject({
      state: "succeeded",
    });
  });

  test("takes an abort that nobody asked for as the infrastructure's failure", () => {
    expect(nextStep(once, failed("ABORTED"), highest)).toMatchObject({
      state: "queued",
      error: { code: "ABORTED" },
    });
  });
});

describe("backoffMs()", () => {
  test("grows to its limit, and lies between a half and all of it", () => {
    const backoff = { initialMs: 100, factor: 3, maxMs: 1000 };
    expect([1, 2, 3, 4, 500].map((n) => backoffMs(backoff, n, highest))).toEqual([100, 300, 900, 1000, 1000]);
    expect([1, 2, 3, 4, 500].map((n) => backoffMs(backoff, n, () => 0))).toEqual([50, 150, 450, 500, 500]);
  });
});
