import type { SetAside } from "../api/mod.ts";

/** What the dispatcher tells those who count. Nothing that is thrown here reaches a task. */
export interface DispatchObserver {
  /** A task was claimed, `waitedMs` after it was queued: see Claim. */
  claimed?(event: { family: string; priority: number; waitedMs?: number | undefined }): void;
  /** A child runs and has proven who it is. */
  childStarted?(event: { family: string; runningMs: number; identifyMs: number }): void;
  attemptEnded?(event: {
    family: string;
    outcome: "succeeded" | "failed" | "retrying" | "infrastructure" | "canceled" | "stale";
    code?: string | undefined;
    ms: number;
  }): void;
  setAside?(event: SetAside): void;
  restored?(event: { kind: SetAside["kind"]; id: string }): void;
}
