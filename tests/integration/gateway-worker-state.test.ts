import { describe, expect, test } from "bun:test";
import { describeError, FlurryError } from "../../errors/errors.ts";
import type { WorkerSpec, WorkerStatus, WorkerVersion } from "../../runtime/api/mod.ts";
import type { Readiness } from "../../runtime/jobs/ports.ts";
import { GatewaySandbox, problemFrom } from "../support/gateway-sandbox.ts";
import { ScriptedRuntime } from "../support/scripted-runtime.ts";

/** Makes parents as the test says, and remembers what failed as a real runtime does. */
class StepwiseRuntime extends ScriptedRuntime {
  readonly #states = new Map<string, Readiness>();
  /** What is being made, by word in its command: how it goes on. */
  readonly making = new Map<string, { step(text: string): void; end(error?: FlurryError): void }>();
  #onMaking = Promise.withResolvers<void>();

  override async prepare(family: string, spec: WorkerSpec, signal: AbortSignal): Promise<void> {
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const set = (state: Readiness | undefined) => {
      if (state) this.#states.set(family, state);
      else this.#states.delete(family);
      this.changed(family);
    };
    const step = (text: string) => set({ state: "preparing", step: text });
    signal.addEventListener("abort", () => reject(new FlurryError("ABORTED", "aborted")), { once: true });
    const end = (error?: FlurryError) => (error ? reject(error) : resolve());
    this.making.set(spec.command![0]!, { step, end });
    this.#onMaking.resolve();
    step("looking for the image");
    try {
      await promise;
      set(undefined);
      await super.prepare(family, spec, signal);
    } catch (error) {
      const { code, message } = describeError(error);
      set({ state: "failed", error: { code, message } });
      throw error;
    }
  }

  override readiness(family: string): Readiness {
    return this.#states.get(family) ?? super.readiness(family);
  }

  /** Waits until something is being made. */
  async begun(word: string): Promise<{ step(text: string): void; end(error?: FlurryError): void }> {
    while (!this.making.has(word)) {
      await this.#onMaking.promise;
      this.#onMaking = Promise.withResolvers<void>();
    }
    const found = this.making.get(word)!;
    this.making.delete(word);
    return found;
  }
}

async function open(): Promise<{ gateway: GatewaySandbox; runtime: StepwiseRuntime }> {
  const runtime = new StepwiseRuntime();
  return { runtime, gateway: await GatewaySandbox.open({ runtime: () => runtime }) };
}

function put(gateway: GatewaySandbox, name: string, word = name, status = 201): Promise<WorkerVersion> {
  const json = { image: "base", command: [word], files: [{ path: "/word", text: word }] };
  return gateway.json(`/v1/workers/${name}`, { method: "PUT", json }, status);
}

function state(gateway: GatewaySandbox, name: string, query: object = {}): Promise<WorkerStatus> {
  const search = new URLSearchParams(Object.entries(query).map(([key, value]) => [key, String(value)]));
  return gateway.json(`/v1/workers/${name}/state?${search}`);
}

describe("GET /v1/workers/{name}/state", () => {
  test("answers as soon as there is something else than what was seen, each step and the end", async () => {
    const { gateway, runtime } = await open();
    await using _gateway = gateway;
    await put(gateway, "a");
    const making = await runtime.begun("a");
    let seen = await state(gateway, "a");
    expect(seen).toEqual({
      ...{ name: "a", version: 1, current: true, state: "preparing", step: "looking for the image" },
      seen: expect.any(String),
    });
    const next = () => state(gateway, "a", { version: 1, after: seen.seen, waitMs: 30_000 });
    let coming = next();
    making.step("booting");
    seen = await coming;
    expect(seen).toMatchObject({ state: "preparing", step: "booting" });
    // What has happened already is told at once.
    making.step("freezing");
    seen = await next();
    expect(seen.step).toBe("freezing");
    coming = next();
    making.end();
    seen = await coming;
    expect(seen).toMatchObject({ state: "ready" });
    expect(seen.step).toBeUndefined();
  });

  test("says the same again when nothing has changed in the time", async () => {
    const { gateway, runtime } = await open();
    await using _gateway = gateway;
    await put(gateway, "a");
    (await runtime.begun("a")).step("booting");
    const first = await state(gateway, "a");
    const began = performance.now();
    expect(await state(gateway, "a", { after: first.seen, waitMs: 200 })).toEqual(first);
    expect(performance.now() - began).toBeGreaterThan(190);
    expect(await state(gateway, "a", { after: first.seen })).toEqual(first);
  });

  test("tells of no failure from before a deployment", async () => {
    const { gateway, runtime } = await open();
    await using _gateway = gateway;
    const failed = { state: "failed", error: { code: "TASK_FAILED", message: "boom" } };
    await put(gateway, "a");
    (await runtime.begun("a")).end(new FlurryError("TASK_FAILED", "boom"));
    let seen = await state(gateway, "a");
    while (seen.state === "preparing") seen = await state(gateway, "a", { after: seen.seen, waitMs: 30_000 });
    expect(seen).toMatchObject(failed);
    const again = await put(gateway, "a", "a", 200);
    expect(again.state).toBe("preparing");
    expect(again.error).toBeUndefined();
    expect((await state(gateway, "a")).state).toBe("preparing");
    (await runtime.begun("a")).end();
    seen = await state(gateway, "a");
    while (seen.state === "preparing") seen = await state(gateway, "a", { after: seen.seen, waitMs: 30_000 });
    expect(seen).toMatchObject({ state: "ready" });
  });

  test("forgets none of many that wait for their turn", async () => {
    const { gateway, runtime } = await open();
    await using _gateway = gateway;
    const names = Array.from({ length: 12 }, (_, index) => `w${index}`);
    for (const name of names) await put(gateway, name);
    expect(await state(gateway, "w11")).toMatchObject({
      ...{ state: "preparing", step: "waiting for other preparations" },
    });
    for (const name of names) (await runtime.begun(name)).end();
    let seen = await state(gateway, "w11");
    while (seen.state !== "ready") seen = await state(gateway, "w11", { after: seen.seen, waitMs: 30_000 });
  });

  test("wakes when another version becomes current, and when the worker is removed", async () => {
    const { gateway, runtime } = await open();
    await using _gateway = gateway;
    await put(gateway, "a");
    (await runtime.begun("a")).end();
    let seen = await state(gateway, "a", { version: 1 });
    while (seen.state !== "ready") seen = await state(gateway, "a", { after: seen.seen, waitMs: 30_000 });
    const replaced = state(gateway, "a", { version: 1, after: seen.seen, waitMs: 30_000 });
    await put(gateway, "a", "other");
    seen = await replaced;
    expect(seen).toMatchObject({ version: 1, current: false, state: "ready" });
    const query = new URLSearchParams({ version: "1", after: seen.seen, waitMs: "30000" });
    const gone = gateway.fetch(`/v1/workers/a/state?${query}`);
    await gateway.fetch("/v1/workers/a", { method: "DELETE" });
    expect(await problemFrom(await gone)).toMatchObject({ status: 404, code: "WORKER_NOT_FOUND" });
    expect(await gateway.problem("/v1/workers/a/state")).toMatchObject({ code: "WORKER_NOT_FOUND" });
    await put(gateway, "b");
    expect(await gateway.problem("/v1/workers/b/state?version=7")).toMatchObject({ status: 404 });
  });

  test("reads a version from the store once, however long it waits, and ends with the gateway", async () => {
    const { gateway, runtime } = await open();
    await put(gateway, "a");
    await put(gateway, "a", "other");
    const making = await runtime.begun("a");
    const { workers } = gateway.context.store;
    const get = workers.get.bind(workers);
    let reads = 0;
    workers.get = (...args) => {
      reads += 1;
      return get(...args);
    };
    const seen = await state(gateway, "a", { version: 1 });
    reads = 0;
    const coming = state(gateway, "a", { version: 1, after: seen.seen, waitMs: 30_000 });
    for (let step = 0; step < 5; step++) await state(gateway, "a");
    making.step("booting");
    const next = await coming;
    expect(reads).toBe(1);
    const last = state(gateway, "a", { version: 1, after: next.seen, waitMs: 30_000 });
    await state(gateway, "a");
    const began = performance.now();
    await gateway[Symbol.asyncDispose]();
    expect(await last).toEqual(next);
    expect(performance.now() - began).toBeLessThan(10_000);
  });
});
