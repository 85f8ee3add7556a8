import type { Job, JobSubmitInput } from "../runtime/api/mod.ts";

/** What is submitted: a job of one task. */
export const SAMPLE_SUBMIT: JobSubmitInput = {
  worker: { image: "base", command: ["true"] },
  tasks: { count: 1 },
};

/** What a gateway answers to it; a bare server answers it to all. */
export const SAMPLE_JOB: Job = {
  id: "job_0123456789abcdef01234567",
  state: "queued",
  reason: "Submitted",
  worker: { image: "base", command: ["true"] },
  priority: 5,
  tags: [],
  retry: { maxAttempts: 1, backoff: { initialMs: 1000, factor: 2, maxMs: 60_000 } },
  tasks: { total: 1, queued: 1, running: 0, retrying: 0, succeeded: 0, failed: 0, canceled: 0 },
  createdAt: "2026-01-31T12:00:00.000Z",
  changedAt: "2026-01-31T12:00:00.000Z",
};
