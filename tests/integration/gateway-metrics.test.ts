import { describe, expect, test } from "bun:test";
import { FlurryError } from "../../errors/errors.ts";
import type { HostEntry, Page } from "../../runtime/api/mod.ts";
import { noFigures, requestOutcomes, sumOfFigures } from "../../runtime/workers/js/request-figures.ts";
import { WorkerLogs } from "../../runtime/workers/js/worker-logs.ts";
import { eventually, GatewaySandbox, idleRuntime, jobOf, StreamReader } from "../support/gateway-sandbox.ts";
import { ScriptedRuntime } from "../support/scripted-runtime.ts";

/** The figures of a gateway: `name{labels}` and value. */
async function figuresOf(gateway: GatewaySandbox, key?: string): Promise<Map<string, number>> {
  const response = await gateway.fetch("/metrics", { key });
  expect(response.headers.get("content-type")).toMatch(/^text\/plain; version=0\.0\.4/);
  const lines = (await response.text()).split("\n").filter((line) => line !== "" && !line.startsWith("#"));
  return new Map(
    lines.map((line) => {
      const [, name, value] = /^(\S+?(?:\{.*\})?) (\S+)$/.exec(line)!;
      return [name!, Number(value)];
    }),
  );
}

describe("GET /metrics", () => {
  test("counts requests by route, tasks and attempts by outcome, and times what children do", async () => {
    const script = ({ index, number }: { index: number; number: number }) => {
      if (index === 1) throw new FlurryError("TASK_FAILED", "It does not want to");
      if (index === 2 && number === 1) throw new FlurryError("TASK_TIMEOUT", "Too slow at first");
      return { exitCode: 0 };
    };
    await using gateway = await GatewaySandbox.open({ runtime: () => new ScriptedRuntime({ script }) });
    const retry = { maxAttempts: 2, backoff: { initialMs: 0 } };
    const job = await gateway.submit(jobOf(3, { retry }));
    await eventually(async () => (await gateway.json(`/v1/jobs/${job.id}`)).state === "failed");
    await gateway.fetch("/v1/none");
    const figures = await figuresOf(gateway);
    expect(figures.get('flurry_http_requests_total{method="POST",route="/v1/jobs",status="202"}')).toBe(1);
    expect(figures.get('flurry_http_requests_total{method="GET",route="none",status="404"}')).toBe(1);
    expect(figures.get('flurry_http_request_seconds_count{method="POST",route="/v1/jobs"}')).toBe(1);
    expect(figures.get('flurry_tasks_total{outcome="succeeded"}')).toBe(2);
    expect(figures.get('flurry_tasks_total{outcome="failed"}')).toBe(1);
    expect(figures.get('flurry_attempts_total{outcome="retrying",code="TASK_FAILED"}')).toBe(1);
    expect(figures.get('flurry_attempts_total{outcome="retrying",code="TASK_TIMEOUT"}')).toBe(1);
    // Tasks 1 and 2 were tried again after a failure: only their first claims say how long a task waits.
    expect(figures.get("flurry_wait_seconds_count")).toBe(3);
    expect(figures.get("flurry_fork_seconds_count")).toBe(5);
    expect(figures.get("flurry_identify_seconds_count")).toBe(5);
    expect(figures.get("flurry_jobs_active")).toBe(0);
    expect(figures.get("flurry_store_up")).toBe(1);
  });

  test("has figures of what waits, runs and streams now, and of the process", async () => {
    await using gateway = await GatewaySandbox.open();
    const job = await gateway.submit(jobOf(3));
    await gateway.claim();
    const stream = await gateway.fetch(`/v1/jobs/${job.id}/events`);
    {
      await using reader = new StreamReader(stream);
      await reader.until("\n\n");
      const figures = await figuresOf(gateway);
      expect(figures.get("flurry_jobs_active")).toBe(1);
      expect(figures.get("flurry_tasks_waiting")).toBe(2);
      expect(figures.get("flurry_tasks_running")).toBe(1);
      expect(figures.get('flurry_streams_open{kind="events"}')).toBe(1);
      for (const name of [
        "process_cpu_seconds_total",
        "process_resident_memory_bytes",
        "process_open_fds",
        "process_start_time_seconds",
      ]) {
        expect([name, figures.get(name)! > 0]).toEqual([name, true]);
      }
    }
    await eventually(async () => (await figuresOf(gateway)).get('flurry_streams_open{kind="events"}') === 0);
  });

  test("has no label that names a job, a worker, a key or a path of somebody's", async () => {
    await using gateway = await GatewaySandbox.open({ runtime: () => new ScriptedRuntime() });
    const { id, key } = await gateway.key(["admin"]);
    await gateway.json(
      "/v1/workers/my-worker",
      { method: "PUT", json: { image: "base", command: ["true"] }, key },
      201,
    );
    const job = await gateway.submit({ worker: "my-worker", tasks: { count: 1 }, tags: ["my-tag"] }, { key });
    await eventually(async () => (await gateway.json(`/v1/jobs/${job.id}`, { key })).state === "succeeded");
    const ask = async (name: string) => {
      await gateway.fetch(`/v1/${name}`, { key });
      await gateway.fetch(`/v1/jobs/job_${name}?${name}`, { key, method: "PATCH" });
      await gateway.fetch(`/v1/jobs/${name}`, { key });
      return figuresOf(gateway, key);
    };
    await ask("my-first");
    const before = await ask("my-second");
    for (let path = 0; path < 30; path++) await ask(`my-path-${path}`);
    expect([...(await ask("my-last")).keys()]).toEqual([...before.keys()]);
    const text = await (await gateway.fetch("/metrics", { key })).text();
    for (const own of [job.id, id, "my-", "vm-1"]) expect(text).not.toContain(own);
  });

  test("has figures of the requests to JS workers, whatever has become of who counted them", async () => {
    const figures = noFigures();
    const requests = {
      handle: () => Promise.reject(new Error("This runtime answers nothing")),
      scheduled: () => Promise.reject(new Error("This runtime calls nothing")),
      remove: () => undefined,
      logs: new WorkerLogs(),
      figures: () => sumOfFigures([figures, figures]),
    };
    await using gateway = await GatewaySandbox.open({ runtime: () => ({ ...idleRuntime(), requests }) });
    Object.assign(figures, { waiting: 2, forks: 9, failedForks: 1, usedAhead: 4, unused: 3 });
    Object.assign(figures.children, { starting: 1, spare: 2, idle: 3, busy: 4, ending: 5 });
    requestOutcomes.forEach((outcome, n) => {
      figures.outcomes[outcome] = n;
    });
    figures.waits = { count: 5, sumMs: 1250, upTo: { 1: 2, 250: 4 } };
    for (const times of [2, 2]) {
      const seen = await figuresOf(gateway);
      const workers = [...seen].filter(([name]) => name.startsWith("flurry_worker_"));
      expect(Object.fromEntries(workers)).toEqual({
        'flurry_worker_children{state="starting"}': 1 * times,
        'flurry_worker_children{state="spare"}': 2 * times,
        'flurry_worker_children{state="idle"}': 3 * times,
        'flurry_worker_children{state="busy"}': 4 * times,
        'flurry_worker_children{state="ending"}': 5 * times,
        flurry_worker_requests_waiting: 2 * times,
        ...Object.fromEntries(
          requestOutcomes.map((outcome, n) => [
            `flurry_worker_requests_total{outcome="${outcome}"}`,
            n * times,
          ]),
        ),
        flurry_worker_forks_total: 9 * times,
        flurry_worker_forks_failed_total: 1 * times,
        flurry_worker_spares_used_total: 4 * times,
        flurry_worker_unused_total: 3 * times,
        'flurry_worker_wait_seconds_bucket{le="0.001"}': 2 * times,
        'flurry_worker_wait_seconds_bucket{le="0.25"}': 4 * times,
        'flurry_worker_wait_seconds_bucket{le="+Inf"}': 5 * times,
        flurry_worker_wait_seconds_sum: 1.25 * times,
        flurry_worker_wait_seconds_count: 5 * times,
      });
    }
  });

  test("still has its other figures when the store fails", async () => {
    await using gateway = await GatewaySandbox.open();
    gateway.context.store.jobs.load = () => Promise.reject(new Error("Broken by the test"));
    const figures = await figuresOf(gateway);
    expect(figures.get("flurry_store_up")).toBe(0);
    expect(figures.get("process_open_fds")).toBeGreaterThan(0);
  });
});

describe("GET /readyz", () => {
  test("is ok while a host takes tasks", async () => {
    await using gateway = await GatewaySandbox.open();
    expect(await gateway.json<object>("/readyz")).toEqual({ status: "ok" });
    expect(await gateway.json<object>("/healthz")).toEqual({ status: "ok" });
  });

  test("says that no host takes any; why is in the list of hosts", async () => {
    await using gateway = await GatewaySandbox.open();
    const { hosts } = gateway.context.store;
    const [host] = (await gateway.json<Page<HostEntry>>("/v1/hosts")).items;
    const now = new Date().toISOString();
    const entry = {
      kind: "host" as const,
      id: host!.id,
      label: "idle",
      reason: "QEMU_START_FAILED: no memory",
    };
    await hosts.setAside(host!.id, { ...entry, failures: 5, since: now, nextTryAt: now });
    const problem = await gateway.problem("/readyz");
    expect(problem).toMatchObject({ status: 503, code: "NOT_READY", retryable: true });
    // Anybody may ask.
    expect(JSON.stringify(problem)).not.toMatch(/QEMU_START_FAILED|no memory|idle/);
    expect((await gateway.json<Page<HostEntry>>("/v1/hosts")).items).toMatchObject([
      { state: "set-aside", setAside: [entry] },
    ]);
    expect((await gateway.fetch("/healthz")).status).toBe(200);
    await hosts.restore(host!.id, "host", host!.id);
    expect((await gateway.fetch("/readyz")).status).toBe(200);
  });

  test("says that the store does not answer", async () => {
    await using gateway = await GatewaySandbox.open();
    gateway.context.store.hosts.list = () =>
      Promise.reject(new FlurryError("STORE_FAILED", "Broken by the test"));
    const problem = await gateway.problem("/readyz");
    expect(problem).toMatchObject({ status: 503, code: "NOT_READY" });
    expect(problem.detail).toBe("The store does not answer");
  });
});
