import { describe, expect, test } from "bun:test";
import type { Page, WorkerVersion } from "../../runtime/api/mod.ts";
import { familyOf } from "../../runtime/jobs/family.ts";
import { eventually, GatewaySandbox, idleRuntime } from "../support/gateway-sandbox.ts";
import { ScriptedRuntime } from "../support/scripted-runtime.ts";

const spec = { image: "base", command: ["true"] };

function put(gateway: GatewaySandbox, name: string, json: object): Promise<Response> {
  return gateway.fetch(`/v1/workers/${name}`, { method: "PUT", json });
}

describe("PUT /v1/workers/{name}", () => {
  test("makes a new version of what differs only", async () => {
    await using gateway = await GatewaySandbox.open();
    const first = await put(gateway, "render", spec);
    expect(first.status).toBe(201);
    const worker: WorkerVersion = await first.json();
    expect(worker).toMatchObject({
      name: "render",
      version: 1,
      current: true,
      spec: { ...spec, memoryMiB: 512 },
    });
    const same = await put(gateway, "render", { ...spec, memoryMiB: 512 });
    expect(same.status).toBe(200);
    expect(await same.json()).toMatchObject({ version: 1 });
    const other = await put(gateway, "render", { ...spec, env: { A: "1" } });
    expect(other.status).toBe(201);
    expect(await other.json()).toMatchObject({ version: 2, current: true });
  });

  test("makes the parent ready in the background", async () => {
    const prepared: string[] = [];
    const runtime = new ScriptedRuntime({ prepare: (family) => void prepared.push(family) });
    await using gateway = await GatewaySandbox.open({ runtime: () => runtime });
    const worker: WorkerVersion = await (await put(gateway, "warm", spec)).json();
    await eventually(async () => (await gateway.json<WorkerVersion>("/v1/workers/warm")).state === "ready");
    expect(prepared).toEqual([familyOf(worker.spec)]);
  });

  test("shows what is being done and why it failed", async () => {
    const error = { code: "IMAGE_NOT_FOUND", message: "There is no image" };
    const states = [
      { state: "preparing" as const, step: "Boots the parent" },
      { state: "failed" as const, error },
    ];
    for (const state of states) {
      const runtime = { ...idleRuntime(), prepare: async () => undefined, readiness: () => state };
      await using gateway = await GatewaySandbox.open({ runtime: () => runtime });
      await put(gateway, "worker", spec);
      await eventually(async () => {
        return (await gateway.json<WorkerVersion>("/v1/workers/worker")).state === state.state;
      });
      expect(await gateway.json("/v1/workers/worker")).toMatchObject(state);
      expect((await gateway.json<Page<WorkerVersion>>("/v1/workers")).items).toMatchObject([state]);
    }
  });

  test("refuses what is no worker, and stores nothing", async () => {
    await using gateway = await GatewaySandbox.open();
    const bad: [string, unknown][] = [
      ["UPPER", spec],
      ["-a", spec],
      ["a".repeat(64), spec],
      ["a", { ...spec, command: [] }],
      ["a", { ...spec, image: "../base" }],
      ["a", { ...spec, colour: "red" }],
      ["a", { ...spec, files: [{ path: "/a/../b", text: "" }] }],
      ["a", { ...spec, files: [{ path: "/a", text: "", base64: "" }] }],
      ["a", []],
    ];
    for (const [name, json] of bad) {
      const problem = await gateway.problem(`/v1/workers/${name}`, { method: "PUT", json });
      expect([name, json, problem.status]).toEqual([name, json, 400]);
    }
    expect((await gateway.json<Page<WorkerVersion>>("/v1/workers")).items).toEqual([]);
  });
});

describe("versions", () => {
  test("are kept, and any can be made the current one again", async () => {
    await using gateway = await GatewaySandbox.open();
    for (const image of ["one", "two", "three"]) await put(gateway, "worker", { ...spec, image });
    const current = (json: unknown) => gateway.fetch("/v1/workers/worker/current", { method: "PUT", json });
    const back = await current({ version: 1 });
    expect(back.status).toBe(200);
    expect(await back.json()).toMatchObject({ version: 1, current: true, spec: { image: "one" } });
    expect(await gateway.json("/v1/workers/worker")).toMatchObject({ version: 1 });
    expect(await gateway.json("/v1/workers/worker?version=2")).toMatchObject({ version: 2, current: false });
    const { items } = await gateway.json<Page<WorkerVersion>>("/v1/workers/worker/versions");
    expect(items.map(({ version, current }) => [version, current])).toEqual([
      [3, false],
      [2, false],
      [1, true],
    ]);
    expect((await current({ version: 4 })).status).toBe(404);
    expect((await current({ version: 0 })).status).toBe(400);
    expect((await gateway.problem("/v1/workers/worker?version=9")).detail).toContain("version 9");
  });

  test("stay with the jobs that were submitted with them", async () => {
    await using gateway = await GatewaySandbox.open();
    await put(gateway, "worker", { ...spec, image: "one" });
    const job = await gateway.submit({ worker: "worker", tasks: { count: 1 } });
    await put(gateway, "worker", { ...spec, image: "two" });
    expect((await gateway.fetch("/v1/workers/worker", { method: "DELETE" })).status).toBe(204);
    expect(await gateway.json(`/v1/jobs/${job.id}`)).toMatchObject({
      worker: { name: "worker", version: 1, image: "one" },
    });
    expect((await gateway.claim()).spec.image).toBe("one");
  });
});

describe("lists", () => {
  test("go on from page to page, without the content of files", async () => {
    await using gateway = await GatewaySandbox.open();
    const files = [{ path: "/srv/a", text: "content" }];
    const names = Array.from({ length: 25 }, (_, index) => `worker-${String(index).padStart(2, "0")}`);
    for (const name of names) await put(gateway, name, { ...spec, files });
    const seen: string[] = [];
    const sizes: number[] = [];
    let cursor: string | undefined;
    do {
      const more = cursor === undefined ? "" : `&cursor=${encodeURIComponent(cursor)}`;
      const page = await gateway.json<Page<WorkerVersion>>(`/v1/workers?limit=12${more}`);
      for (const { name, spec } of page.items) {
        seen.push(name);
        expect(spec.files).toEqual([]);
      }
      sizes.push(page.items.length);
      cursor = page.next;
    } while (cursor !== undefined);
    expect(seen).toEqual(names);
    expect(sizes).toEqual([12, 12, 1]);
    expect((await gateway.json<WorkerVersion>("/v1/workers/worker-00")).spec.files).toMatchObject(files);
  });
});

describe("a worker that there is not", () => {
  test.each([
    ["GET", "/v1/workers/none"],
    ["GET", "/v1/workers/none/versions"],
    ["DELETE", "/v1/workers/none"],
    ["PUT", "/v1/workers/none/current"],
  ])("%s %s is WORKER_NOT_FOUND", async (method, path) => {
    await using gateway = await GatewaySandbox.open();
    const json = method === "PUT" ? { json: { version: 1 } } : {};
    expect(await gateway.problem(path, { method, ...json })).toMatchObject({
      status: 404,
      code: "WORKER_NOT_FOUND",
    });
  });
});
