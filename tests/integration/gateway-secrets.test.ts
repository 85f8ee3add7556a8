import { describe, expect, test } from "bun:test";
import { readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import type { Page, Problem, Secret, WorkerVersion } from "../../runtime/api/mod.ts";
import type { GatewayRuntime } from "../../runtime/gateway/context.ts";
import { noFigures } from "../../runtime/workers/js/request-figures.ts";
import { WorkerLogs } from "../../runtime/workers/js/worker-logs.ts";
import { eventually, GatewaySandbox, idleRuntime } from "../support/gateway-sandbox.ts";
import { ScriptedRuntime } from "../support/scripted-runtime.ts";

const VALUE = "correct horse battery staple";

test("a secret is given to tasks, and shown to nobody", async () => {
  const seen: (string | undefined)[] = [];
  const runtime = new ScriptedRuntime({
    script: ({ env }) => {
      seen.push(env.TOKEN);
      return { exitCode: 0 };
    },
  });
  await using gateway = await GatewaySandbox.open({ runtime: () => runtime });
  const put = await gateway.fetch("/v1/secrets/token", { method: "PUT", json: { value: VALUE } });
  expect(put.status).toBe(200);
  const answers = [await put.text()];
  const worker = { image: "base", command: ["true"], secrets: { TOKEN: "token" } };
  const job = await gateway.submit({ worker, tasks: { count: 1 } });
  await eventually(async () => (await gateway.json(`/v1/jobs/${job.id}`)).state === "succeeded");
  expect(seen).toEqual([VALUE]);
  for (const path of [
    "/v1/secrets",
    `/v1/jobs/${job.id}`,
    `/v1/jobs/${job.id}/tasks/0`,
    `/v1/jobs/${job.id}/results`,
  ]) {
    answers.push(await (await gateway.fetch(path)).text());
  }
  expect(answers.join("\n")).not.toContain(VALUE);
  await gateway.end();
  for (const file of readdirSync(gateway.dir, { recursive: true, encoding: "utf8" })) {
    const path = join(gateway.dir, file);
    if (statSync(path).isFile()) expect([file, readFileSync(path).includes(VALUE)]).toEqual([file, false]);
  }
});

test("a secret is set, set again, listed by its name, and removed", async () => {
  await using gateway = await GatewaySandbox.open();
  for (const value of ["one", "two"]) {
    await gateway.json("/v1/secrets/token", { method: "PUT", json: { value } });
  }
  expect(await gateway.context.store.secrets.value("token", "")).toBe("two");
  const { items } = await gateway.json<Page<Secret>>("/v1/secrets");
  expect(items).toEqual([{ name: "token", createdAt: expect.any(String) as unknown as string }]);
  expect((await gateway.fetch("/v1/secrets/token", { method: "DELETE" })).status).toBe(204);
  const again = await gateway.problem("/v1/secrets/token", { method: "DELETE" });
  expect(again).toMatchObject({ status: 404, code: "SECRET_NOT_FOUND" });
  expect((await gateway.fetch("/v1/secrets/token")).status).toBe(405);
});

test("what is no secret is refused without being repeated", async () => {
  await using gateway = await GatewaySandbox.open();
  for (const json of [
    { value: "" },
    { value: `${VALUE}\0` },
    { value: VALUE, other: 1 },
    { value: [VALUE] },
    VALUE,
  ]) {
    const response = await gateway.fetch("/v1/secrets/token", { method: "PUT", json });
    expect([json, response.status]).toEqual([json, 400]);
    expect(await response.text()).not.toContain(VALUE);
  }
});

describe("a worker that is asked over HTTP", () => {
  const spec = {
    module: { code: "export default { fetch() {} }" },
    secrets: { OURS: "ours", HERS: "hers" },
  };
  const asKey = (key?: string, json: object = spec) => ({ method: "PUT", json, key });
  const hint = (problem: Problem) => problem.hint ?? "";

  test("has the secrets that the key which deployed it may use, whoever makes it current", async () => {
    await using gateway = await GatewaySandbox.open({ runtime: telling });
    const admin = await gateway.key(["admin"]);
    const ann = await gateway.key(["submit", "read"]);
    const bob = await gateway.key(["submit", "read"]);
    await putSecrets(gateway, admin.key, ann.id);
    const put = (key: string, status: number) =>
      gateway.json<WorkerVersion>("/v1/workers/shop", asKey(key), status);
    expect(await put(ann.key, 201)).toMatchObject({ version: 1 });
    expect(await put(ann.key, 200)).toMatchObject({ version: 1 });
    const all = { OURS: "one", HERS: "two" };
    expect(await gateway.json<object>("/w/shop/")).toEqual(all);
    expect(await gateway.json<object>("/w/shop/", { key: bob.key })).toEqual(all);
    // The same from another key is another version.
    expect(await put(bob.key, 201)).toMatchObject({ version: 2, current: true });
    const refused = await gateway.problem("/w/shop/", { key: ann.key });
    expect(refused).toMatchObject({ status: 404, code: "SECRET_NOT_FOUND" });
    expect(refused.detail).toContain('"hers"');
    expect(hint(refused)).toContain("for the key that has deployed this worker");
    for (const name of ["shop", "shop/current"]) {
      const init = name === "shop" ? { key: bob.key } : asKey(bob.key, { version: 1 });
      expect(await gateway.json<object>(`/v1/workers/${name}`, init)).not.toHaveProperty("owner");
    }
    expect(await gateway.json<object>("/w/shop/")).toEqual(all);
    for (const path of ["/v1/workers", "/v1/workers/shop/versions"]) {
      const { items } = await gateway.json<Page<WorkerVersion>>(path, { key: bob.key });
      for (const item of items) expect(item).not.toHaveProperty("owner");
    }
  });

  test("has what is for all keys when the key that deployed it is gone", async () => {
    await using gateway = await GatewaySandbox.open({ runtime: telling });
    const admin = await gateway.key(["admin"]);
    const ann = await gateway.key(["submit"]);
    await putSecrets(gateway, admin.key, ann.id);
    await gateway.json("/v1/workers/shop", asKey(ann.key), 201);
    await gateway.json("/v1/workers/plain", asKey(ann.key, { ...spec, secrets: { OURS: "ours" } }), 201);
    expect(await gateway.json<object>("/w/shop/")).toEqual({ OURS: "one", HERS: "two" });
    await gateway.fetch(`/v1/keys/${ann.id}`, { method: "DELETE", key: admin.key });
    const refused = await gateway.problem("/w/shop/");
    expect(refused).toMatchObject({ status: 404, code: "SECRET_NOT_FOUND" });
    expect(hint(refused)).toContain("deploy it again");
    expect(hint(refused)).not.toContain(ann.id);
    expect(await gateway.json<object>("/w/plain/")).toEqual({ OURS: "one" });
  });

  test("has every secret where there are no keys, and with the first key what is for all", async () => {
    await using gateway = await GatewaySandbox.open({ runtime: telling });
    await gateway.json("/v1/workers/shop", asKey(), 201);
    await putSecrets(gateway, undefined, "ann");
    expect(await gateway.json<object>("/w/shop/")).toEqual({ OURS: "one", HERS: "two" });
    await gateway.key(["admin"]);
    expect(hint(await gateway.problem("/w/shop/"))).toContain("deploy it again");
  });
});

async function putSecrets(gateway: GatewaySandbox, key: string | undefined, hers: string): Promise<void> {
  const put = (name: string, json: object) =>
    gateway.json<Secret>(`/v1/secrets/${name}`, { method: "PUT", json, key });
  await put("ours", { value: "one" });
  await put("hers", { value: "two", keys: [hers] });
}

/** A runtime whose workers answer with their secrets. */
function telling(): GatewayRuntime {
  return {
    ...idleRuntime(),
    requests: {
      handle: async ({ secrets }) => Response.json(await secrets()),
      scheduled: () => Promise.reject(new Error("This runtime calls no scheduled()")),
      remove: () => undefined,
      figures: noFigures,
      logs: new WorkerLogs(),
    },
  };
}
