import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { SpanStatusCode, trace } from "@opentelemetry/api";
import { InMemorySpanExporter, SimpleSpanProcessor, TracerProvider } from "@opentelemetry/sdk-trace";
import { AttemptSpans } from "../../runtime/jobs/attempt-spans.ts";

const TRACE = "0af7651916cd43dd8448eb211c80319c";
const claim = { job: "job_1", index: 3, attempt: 2, traceparent: `00-${TRACE}-b7ad6b7169203331-01` };
const exporter = new InMemorySpanExporter();

beforeEach(() => {
  trace.setGlobalTracerProvider(
    new TracerProvider({ spanProcessors: [new SimpleSpanProcessor({ exporter })] }),
  );
});

afterEach(() => {
  trace.disable();
  exporter.reset();
});

function spansByName() {
  return new Map(exporter.getFinishedSpans().map((span) => [span.name, span]));
}

describe("AttemptSpans", () => {
  test("puts the task into the trace of its submission, and fork, identify and run into the task", () => {
    const spans = new AttemptSpans(claim);
    spans.started({ vm: "vm-7", beganAt: 1000, runningAt: 1050, identifiedAt: 1070 });
    spans.ran();
    spans.end("succeeded", undefined);
    const found = spansByName();
    const task = found.get("task")!;
    expect(task.spanContext().traceId).toBe(TRACE);
    expect(task.parentSpanContext?.spanId).toBe("b7ad6b7169203331");
    expect(task.attributes).toMatchObject({
      ...{ "flurry.job": "job_1", "flurry.task": 3, "flurry.attempt": 2 },
      ...{ "flurry.vm": "vm-7", "flurry.outcome": "succeeded" },
    });
    for (const [name, startMs] of Object.entries({ fork: 1000, identify: 1050, run: 1070 })) {
      const span = found.get(name)!;
      expect(span.spanContext().traceId).toBe(TRACE);
      expect(span.parentSpanContext?.spanId).toBe(task.spanContext().spanId);
      expect(span.startTime).toEqual([1, (startMs - 1000) * 1e6]);
    }
    expect(found.get("fork")?.endTime).toEqual([1, 50e6]);
  });

  test("shows an attempt that failed before it had a child, in a trace of its own", () => {
    const spans = new AttemptSpans({ ...claim, traceparent: "nonsense" });
    spans.ran();
    spans.end("infrastructure", { code: "FORK_FAILED", message: "No luck" });
    const found = spansByName();
    expect([...found.keys()]).toEqual(["task"]);
    const task = found.get("task")!;
    expect(task.parentSpanContext).toBeUndefined();
    expect(task.status).toEqual({ code: SpanStatusCode.ERROR, message: "No luck" });
    expect(task.attributes).toMatchObject({
      "error.type": "FORK_FAILED",
      "flurry.outcome": "infrastructure",
    });
  });
});
