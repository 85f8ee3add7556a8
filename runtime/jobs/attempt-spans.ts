import {
  type Context,
  ROOT_CONTEXT,
  type Span,
  type SpanContext,
  SpanStatusCode,
  trace,
} from "@opentelemetry/api";
import type { Claim } from "./ports.ts";

/** The trace of an attempt: `task`, and in it `fork`, `identify` and `run`. */
export class AttemptSpans {
  readonly #task: Span;
  #run: Span | undefined;

  constructor(claim: Pick<Claim, "job" | "index" | "attempt" | "traceparent">) {
    const attributes = {
      "flurry.job": claim.job,
      "flurry.task": claim.index,
      "flurry.attempt": claim.attempt,
    };
    this.#task = this.#tracer().startSpan("task", { attributes }, parentOf(claim.traceparent));
  }

  started(child: { vm: string; beganAt: number; runningAt: number; identifiedAt: number }): void {
    this.#task.setAttribute("flurry.vm", child.vm);
    this.#child("fork", child.beganAt).end(child.runningAt);
    this.#child("identify", child.runningAt).end(child.identifiedAt);
    this.#run = this.#child("run", child.identifiedAt);
  }

  /** The child is gone. */
  ran(): void {
    this.#run?.end();
  }

  end(outcome: string, error: { code: string; message: string } | undefined): void {
    this.#task.setAttribute("flurry.outcome", outcome);
    if (error) {
      this.#task.setAttribute("error.type", error.code);
      this.#task.setStatus({ code: SpanStatusCode.ERROR, message: error.message });
    }
    this.#task.end();
  }

  #child(name: string, startTime: number): Span {
    return this.#tracer().startSpan(name, { startTime }, trace.setSpan(ROOT_CONTEXT, this.#task));
  }

  #tracer() {
    return trace.getTracer("flurry");
  }
}

/** A context whose span is that of a W3C `traceparent`. */
function parentOf(traceparent: string | undefined): Context {
  const match = /^[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})/.exec(traceparent ?? "");
  if (!match) return ROOT_CONTEXT;
  const [, traceId, spanId, flags] = match;
  const parent: SpanContext = {
    traceId: traceId!,
    spanId: spanId!,
    traceFlags: Number.parseInt(flags!, 16),
    isRemote: true,
  };
  return trace.setSpanContext(ROOT_CONTEXT, parent);
}
