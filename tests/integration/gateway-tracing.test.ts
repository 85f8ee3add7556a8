import { describe, expect, test } from "bun:test";
import { trace } from "@opentelemetry/api";
import { FlurryError } from "../../errors/errors.ts";
import { openTracing } from "../../runtime/gateway/tracing.ts";
import { Collector } from "../support/gateway-collector.ts";
import { eventually, GatewaySandbox, jobOf } from "../support/gateway-sandbox.ts";
import { ScriptedRuntime } from "../support/scripted-runtime.ts";

const TRACE = "0af7651916cd43dd8448eb211c80319c";
const ASKER = "b7ad6b7169203331";
const traceparent = `00-${TRACE}-${ASKER}-01`;

async function ended(gateway: GatewaySandbox, id: string): Promise<string> {
  await eventually(async () =>
    ["succeeded", "failed"].includes((await gateway.json(`/v1/jobs/${id}`)).state),
  );
  return (await gateway.json(`/v1/jobs/${id}`)).state;
}

describe("with a collector", () => {
  test("one trace leads from the asker over HTTP to the task and what its child did", async () => {
    await using collector = await Collector.open();
    await using gateway = await GatewaySandbox.open({ runtime: () => new ScriptedRuntime() });
    const response = await gateway.fetch("/v1/jobs", {
      method: "POST",
      json: jobOf(1),
      headers: { traceparent },
    });
    const job: { id: string } = await response.json();
    expect(response.headers.get("traceparent")).toContain(TRACE);
    expect(await ended(gateway, job.id)).toBe("succeeded");
    await gateway.end();
    const spans = collector.spans.filter(({ traceId }) => traceId === TRACE);
    const named = (name: string) => {
      const found = spans.filter((span) => span.name === name);
      expect([name, found.length]).toEqual([name, 1]);
      return found[0]!;
    };
    const request = named("POST /v1/jobs");
    expect(request.parentSpanId).toBe(ASKER);
    expect(response.headers.get("traceparent")).toBe(`00-${TRACE}-${request.spanId}-01`);
    const task = named("task");
    expect(task.parentSpanId).toBe(request.spanId);
    for (const name of ["fork", "identify", "run"]) expect(named(name).parentSpanId).toBe(task.spanId);
    const attributes = Object.fromEntries(
      task.attributes.map(({ key, value }) => [key, Object.values(value)[0]]),
    );
    expect(attributes["flurry.job"]).toBe(job.id);
    expect([...collector.services]).toEqual(["flurry"]);
  });

  test("requests have traces of their own without a traceparent, or with one that is none", async () => {
    await using collector = await Collector.open();
    await using gateway = await GatewaySandbox.open();
    const bad = [
      "",
      "x",
      `00-${"0".repeat(32)}-${ASKER}-01`,
      `ff-${TRACE}-${ASKER}-01`,
      `00-${TRACE}-${ASKER}`,
    ];
    for (const value of bad) {
      expect((await gateway.fetch("/v1/jobs", { headers: { traceparent: value } })).status).toBe(200);
    }
    await gateway.fetch("/v1/jobs");
    await gateway.fetch("/none");
    for (const path of ["/healthz", "/readyz", "/metrics"]) await gateway.fetch(path);
    await gateway.end();
    const { spans } = collector;
    expect(spans.map(({ name }) => name).toSorted()).toEqual([...Array(6).fill("GET /v1/jobs"), "GET none"]);
    expect(new Set(spans.map(({ traceId }) => traceId)).size).toBe(spans.length);
    for (const span of spans) expect(span.parentSpanId ?? "").toBe("");
    expect(spans.map(({ traceId }) => traceId)).not.toContain(TRACE);
  });

  test("a failed request and a failed task say so", async () => {
    await using collector = await Collector.open();
    const script = () => {
      throw new FlurryError("TASK_TIMEOUT", "It took too long");
    };
    await using gateway = await GatewaySandbox.open({ runtime: () => new ScriptedRuntime({ script }) });
    const job = await gateway.submit(jobOf(1));
    expect(await ended(gateway, job.id)).toBe("failed");
    gateway.context.store.secrets.list = () => Promise.reject(new Error("Broken by the test"));
    expect((await gateway.fetch("/v1/secrets")).status).toBe(500);
    await gateway.end();
    const statusOf = (name: string) => collector.spans.find((span) => span.name === name)?.status?.code;
    expect(statusOf("task")).toBe(2);
    expect(statusOf("GET /v1/secrets")).toBe(2);
    expect(statusOf("POST /v1/jobs")).not.toBe(2);
  });

  test("the active span is carried through promises and timers", async () => {
    await using _collector = await Collector.open();
    await using _tracing = openTracing();
    const tracer = trace.getTracer("test");
    const inside = (name: string) =>
      tracer.startActiveSpan(name, async (span) => {
        await new Promise((resolve) => setTimeout(resolve, 1));
        await Promise.resolve();
        const same = trace.getActiveSpan() === span;
        span.end();
        return same;
      });
    expect(await Promise.all([inside("a"), inside("b"), inside("c")])).toEqual([true, true, true]);
    expect(trace.getActiveSpan()).toBeUndefined();
  });
});

describe("a collector that fails", () => {
  test("is waited for no longer than the bound when tracing ends", async () => {
    await using collector = await Collector.open(false);
    {
      await using _tracing = openTracing({ flushMs: 200 });
      trace.getTracer("test").startSpan("lost").end();
    }
    await collector.asked;
    expect(collector.open).toBe(1);
  });

  test("fails no request and no task when nobody listens", async () => {
    const collector = await Collector.open();
    const endpoint = process.env.OTEL_EXPORTER_OTLP_ENDPOINT;
    await collector[Symbol.asyncDispose]();
    process.env.OTEL_EXPORTER_OTLP_ENDPOINT = endpoint;
    try {
      await using gateway = await GatewaySandbox.open({ runtime: () => new ScriptedRuntime() });
      const job = await gateway.submit(jobOf(3));
      expect(await ended(gateway, job.id)).toBe("succeeded");
      await gateway.end();
    } finally {
      delete process.env.OTEL_EXPORTER_OTLP_ENDPOINT;
    }
  });
});

describe("without a collector", () => {
  test("a job still belongs to its asker's trace", async () => {
    expect(openTracing()).toBeUndefined();
    await using gateway = await GatewaySandbox.open();
    const response = await gateway.fetch("/v1/jobs", {
      method: "POST",
      json: jobOf(1),
      headers: { traceparent },
    });
    expect(response.headers.has("traceparent")).toBe(false);
    expect((await gateway.claim()).traceparent).toBe(traceparent);
  });

  test("a traceparent that is none is not stored", async () => {
    await using gateway = await GatewaySandbox.open();
    await gateway.submit(jobOf(1), { headers: { traceparent: "not one" } });
    expect((await gateway.claim()).traceparent).toBeUndefined();
  });
});
