import { getLogger } from "@logtape/logtape";
import { describeError } from "../../errors/errors.ts";
import type { Clock } from "../clock.ts";
import { AttemptOutput } from "./attempt-output.ts";
import { type AttemptOutcome, blobPrefix, runAttempt } from "./attempt-runner.ts";
import { AttemptSpans } from "./attempt-spans.ts";
import { classOf, type Ending, nextStep } from "./next-step.ts";
import type { DispatchObserver } from "./observer.ts";
import type { AttemptEnd, Claim, Store } from "./ports.ts";
import type { Preparing } from "./preparing.ts";
import type { Recorder } from "./recorder.ts";
import type { Trial } from "./set-aside.ts";
import type { Slots } from "./slots.ts";
import type { AttemptIo, TaskRuntime } from "./task-runtime.ts";
import type { After } from "./timer.ts";
import type { WaitsFor } from "./waiting.ts";

const NOTHING: Ending["left"] = { stdout: "", stdoutTruncated: false, artifacts: [] };
const logger = getLogger(["flurry", "jobs"]);

/** What the attempts of a dispatcher share. */
export interface AttemptHost {
  store: Store;
  runtime: TaskRuntime;
  clock: Clock;
  after: After;
  random: () => number;
  recorder: Recorder;
  slots: Slots;
  preparing: Preparing;
  /** Never throws. */
  tell: (tellOne: (observer: DispatchObserver) => void) => void;
  /** More may be claimed. */
  changed: () => void;
}

type Outcome = Parameters<NonNullable<DispatchObserver["attemptEnded"]>>[0]["outcome"];

/** A claimed task, from its claim until its end is recorded. */
export class LiveAttempt {
  readonly claim: Claim;
  readonly #host: AttemptHost;
  readonly #trial: Trial;
  readonly #abort = new AbortController();
  readonly #giveUp = new AbortController();
  #slot: Disposable | undefined;
  #preparing: boolean;
  #stop: Ending["stop"];
  #lost = false;
  #admitted = false;
  #started = false;

  /** @param slot - a place to run; absent when the family has to be made ready first */
  constructor(host: AttemptHost, claim: Claim, trial: Trial, slot: Disposable | undefined) {
    this.claim = claim;
    this.#host = host;
    this.#trial = trial;
    this.#slot = slot;
    this.#preparing = slot === undefined;
  }

  /** Whether it has a place to run, or had one. */
  get runs(): boolean {
    return this.#slot !== undefined;
  }

  /** What it waits for before its child can run. */
  get waitsFor(): WaitsFor {
    if (this.#preparing) return "worker";
    if (this.#slot === undefined) return "place";
    return this.#admitted ? undefined : "memory";
  }

  /** Aborts it. A task that is canceled stays so when the gateway ends meanwhile. */
  stop(why: "canceled" | "shutdown", reason: string): void {
    if (this.#stop?.why !== "canceled") this.#stop = { why, reason };
    this.#abort.abort();
  }

  /** Aborts it because its lease is not ours any more. */
  lose(): void {
    this.#lost = true;
    this.#abort.abort();
    this.#giveUp.abort();
  }

  /** Lets it end even if the store does not take its end. */
  giveUp(): void {
    this.#giveUp.abort();
  }

  async run(): Promise<void> {
    const { store, clock, after } = this.#host;
    const { claim } = this;
    const began = clock.monotonic();
    const spans = new AttemptSpans(claim);
    const { job, index: task, attempt } = claim;
    try {
      using output = new AttemptOutput({ logs: store.logs, job, task, attempt, after });
      const outcome = await runAttempt({
        claim,
        store,
        runtime: this.#host.runtime,
        output,
        signal: this.#abort.signal,
        ready: () => this.#ready(),
        onAdmitted: () => {
          this.#admitted = true;
        },
        onStarted: (child) => this.#noteStart(child, spans),
      });
      spans.ran();
      this.#judge(outcome);
      const end = nextStep(claim, { ...outcome, stop: this.#stop }, this.#host.random);
      const outcomeName = await this.#record(end, output);
      const error = "result" in end ? end.result.error : "error" in end ? end.error : undefined;
      spans.end(outcomeName, error);
      const ms = clock.monotonic() - began;
      this.#host.tell((observer) =>
        observer.attemptEnded?.({ family: claim.family, outcome: outcomeName, code: error?.code, ms }),
      );
    } finally {
      this.#prepared();
      this.#trial.unknown();
      this.#slot?.[Symbol.dispose]();
    }
  }

  async #ready(): Promise<void> {
    if (this.#slot) return;
    const { runtime, slots } = this.#host;
    const { family, spec } = this.claim;
    const { signal } = this.#abort;
    await runtime.prepare(family, spec, signal);
    this.#prepared();
    this.#slot = await slots.acquire(signal);
  }

  #prepared(): void {
    if (!this.#preparing) return;
    this.#preparing = false;
    this.#host.preparing.end(this.claim.family);
    this.#host.changed();
  }

  #noteStart(child: Parameters<AttemptIo["started"]>[0], spans: AttemptSpans): void {
    this.#started = true;
    spans.started(child);
    const { beganAt, runningAt, identifiedAt } = child;
    this.#host.tell((observer) =>
      observer.childStarted?.({
        family: this.claim.family,
        runningMs: runningAt - beganAt,
        identifyMs: identifiedAt - runningAt,
      }),
    );
  }

  /** Tells what the attempt shows of its family and of the host. */
  #judge(outcome: AttemptOutcome): void {
    if ("exit" in outcome) {
      this.#trial.worked();
    } else if (!this.#stop && !this.#lost) {
      const { code, message } = describeError(outcome.error);
      const kind = classOf(code);
      if (kind === "infrastructure" || kind === "aborted") this.#trial.failed(code, message);
      else if (this.#started) this.#trial.worked();
    }
    this.#trial.unknown();
  }

  async #record(end: AttemptEnd, output: AttemptOutput): Promise<Outcome> {
    const keeps = end.state === "succeeded" || end.state === "failed";
    // Before the end: whoever dies in between leaves none behind.
    if (!keeps) await this.#removeBlobs();
    const recorded = this.#lost
      ? "stale"
      : await this.#host.recorder.finish(this.claim.token, end, {
          first: () => output.flush(),
          instead: (error) => nextStep(this.claim, { error, stage: "run", left: NOTHING }, this.#host.random),
          giveUp: this.#giveUp.signal,
        });
    if (recorded === "recorded") return end.state === "queued" ? wentBack(end.error) : end.state;
    if (keeps) await this.#removeBlobs();
    return recorded === "replaced" ? "infrastructure" : "stale";
  }

  async #removeBlobs(): Promise<void> {
    if (!this.#started) return;
    const prefix = blobPrefix(this.claim);
    try {
      await this.#host.store.blobs.removeAll(prefix);
    } catch (error) {
      // They go with their job at the latest.
      logger.warn("Cannot remove the blobs {prefix}: {error}", { prefix, error });
    }
  }
}

function wentBack(error: unknown): Outcome {
  return error === undefined ? "canceled" : "infrastructure";
}
