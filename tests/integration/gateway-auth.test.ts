import { describe, expect, test } from "bun:test";
import { readdirSync, readFileSync, statSync } from "node:fs";
import http from "node:http";
import { join } from "node:path";
import type { Job, Key, Page, Problem, Scope } from "../../runtime/api/mod.ts";
import { GatewaySandbox, jobOf, problemFrom } from "../support/gateway-sandbox.ts";

/** What each operation needs. Who adds one decides it here. */
const needs: Record<Scope | "nothing", string[]> = {
  nothing: ["isAlive", "isReady"],
  read: [
    "listJobs",
    "getJob",
    "listTasks",
    "getTask",
    "streamEvents",
    "streamResults",
    "streamLogs",
    "listArtifacts",
    "readArtifact",
    "listDeliveries",
    "listWorkers",
    "getWorker",
    "listWorkerVersions",
    "watchWorkerState",
    "readWorkerLogs",
    "listHosts",
    "getReceipt",
    "listVms",
    "getVm",
    "readVmFile",
    "listCheckpoints",
    "getCheckpoint",
    "getMetrics",
  ],
  submit: [
    "submitJob",
    "validateJob",
    "deleteJob",
    "cancelJob",
    "retryJob",
    "retryTask",
    "putWorker",
    "callScheduled",
    "setCurrentWorker",
    "deleteWorker",
    "createVm",
    "endVm",
    "forkVm",
    "execInVm",
    "writeVmFile",
    "createCheckpoint",
    "deleteCheckpoint",
  ],
  admin: ["createKey", "listKeys", "deleteKey", "putSecret", "listSecrets", "deleteSecret"],
};

interface Operation {
  id: string;
  method: string;
  path: string;
}

/** All operations of the document, with paths that can be asked for. */
async function operationsOf(gateway: GatewaySandbox): Promise<Operation[]> {
  const document = await gateway.json<{ paths: Record<string, Record<string, { operationId: string }>> }>(
    "/openapi.json",
  );
  return Object.entries(document.paths).flatMap(([template, methods]) =>
    Object.entries(methods).map(([method, { operationId }]) => ({
      id: operationId,
      method: method.toUpperCase(),
      path: template
        .replace("/jobs/{id}", "/jobs/job_ffffffffffffffffffffffff")
        .replace(/\{(index|task)\}/, "0")
        .replaceAll(/\{[^}]+\}/g, "x"),
    })),
  );
}

/** A request whose Host header says something else than where it goes. */
function ask(gateway: GatewaySandbox, path: string, headers: Record<string, string>): Promise<number> {
  const { promise, resolve, reject } = Promise.withResolvers<number>();
  const request = http.request({ host: "127.0.0.1", port: gateway.port, path, headers, agent: false });
  request.on("error", reject);
  request.on("response", (response) => {
    response.resume();
    response.on("end", () => resolve(response.statusCode ?? 0));
  });
  request.end();
  return promise;
}

describe("without keys", () => {
  test("everybody of this machine may do everything", async () => {
    await using gateway = await GatewaySandbox.open();
    await gateway.submit(jobOf(1));
    expect((await gateway.json<Page<Job>>("/v1/jobs")).items).toHaveLength(1);
    expect((await gateway.json<Page<Key>>("/v1/keys")).items).toEqual([]);
    expect((await gateway.fetch("/metrics")).status).toBe(200);
  });

  test("only names of the loopback interface are answered", async () => {
    await using gateway = await GatewaySandbox.open();
    const { port } = gateway;
    for (const host of [
      `localhost:${port}`,
      `127.0.0.1:${port}`,
      "127.1.2.3",
      `[::1]:${port}`,
      "LOCALHOST",
    ]) {
      expect([host, await ask(gateway, "/v1/jobs", { host })]).toEqual([host, 200]);
    }
    for (const host of [
      "rebound.test",
      `rebound.test:${port}`,
      "localhost.rebound.test",
      "127.0.0.1.rebound.test",
      "10.0.0.1",
      "0.0.0.0",
      "localhost@rebound.test",
    ]) {
      expect([host, await ask(gateway, "/v1/jobs", { host })]).toEqual([host, 403]);
    }
  });

  test("pages of other origins may not ask", async () => {
    await using gateway = await GatewaySandbox.open();
    const { url, port } = gateway;
    const own = [
      { origin: url },
      { origin: url, "sec-fetch-site": "same-origin" },
      { "sec-fetch-site": "none" },
    ];
    for (const headers of own) {
      expect((await gateway.fetch("/v1/jobs", { headers: { ...headers } as HeadersInit })).status).toBe(200);
    }
    const others: Record<string, string>[] = [
      { origin: "https://evil.test" },
      { origin: "null" },
      { origin: `http://127.0.0.1:${port + 1}` },
      { origin: `http://localhost:${port}` },
      { origin: "" },
      { "sec-fetch-site": "cross-site" },
      { "sec-fetch-site": "same-site" },
      { origin: url, "sec-fetch-site": "cross-site" },
    ];
    for (const headers of others) {
      expect([headers, await ask(gateway, "/v1/jobs", { host: `127.0.0.1:${port}`, ...headers })]).toEqual([
        headers,
        403,
      ]);
    }
    const problem = await problemFrom(
      await gateway.fetch("/v1/jobs", {
        method: "POST",
        json: jobOf(1),
        headers: { origin: "https://evil.test" },
      }),
    );
    expect(problem.code).toBe("FORBIDDEN");
    expect((await gateway.json<Page<Job>>("/v1/jobs")).items).toEqual([]);
  });

  test("the first key has to be an admin's, and ends the time without keys", async () => {
    await using gateway = await GatewaySandbox.open();
    const create = (scopes: Scope[]) =>
      gateway.fetch("/v1/keys", { method: "POST", json: { name: "first", scopes } });
    const refused = await problemFrom(await create(["submit", "read"]));
    expect(refused).toMatchObject({ status: 400, code: "BAD_ARGUMENT" });
    const created = await create(["admin"]);
    expect(created.status).toBe(201);
    expect(created.headers.get("cache-control")).toBe("no-store");
    const { id, key } = await created.json();
    const open = await gateway.fetch("/v1/jobs");
    expect(open.status).toBe(401);
    expect(open.headers.get("www-authenticate")).toBe('Bearer realm="flurry"');
    const { items } = await gateway.json<Page<Key>>("/v1/keys", { key });
    expect(items).toEqual([
      {
        id,
        name: "first",
        scopes: ["admin"],
        limits: {},
        createdAt: expect.any(String) as unknown as string,
      },
    ]);
  });
});

describe("with keys", () => {
  test("every operation needs its scope, and no other", async () => {
    await using gateway = await GatewaySandbox.open();
    const keys = {
      admin: await gateway.key(["admin"]),
      read: await gateway.key(["read"]),
      submit: await gateway.key(["submit"]),
    };
    const operations = await operationsOf(gateway);
    expect(operations.map(({ id }) => id).toSorted()).toEqual(Object.values(needs).flat().toSorted());
    for (const { id, method, path } of operations) {
      const statusWith = async (key?: string) => (await gateway.fetch(path, { method, key })).status;
      const answers = {
        nobody: await statusWith(),
        read: await statusWith(keys.read.key),
        submit: await statusWith(keys.submit.key),
        admin: await statusWith(keys.admin.key),
      };
      const passes = Object.entries(answers).flatMap(([who, status]) =>
        status === 401 || status === 403 ? [] : who,
      );
      const scope = (Object.keys(needs) as (keyof typeof needs)[]).find((each) => needs[each].includes(id));
      const expected = {
        nothing: ["nobody", "read", "submit", "admin"],
        read: ["read", "admin"],
        submit: ["submit", "admin"],
        admin: ["admin"],
      }[scope!];
      expect([id, passes]).toEqual([id, expected]);
      expect([id, scope === "nothing" || answers.nobody === 401]).toEqual([id, true]);
    }
  });

  test("the docs and the document stay open, and no path leads past them", async () => {
    await using gateway = await GatewaySandbox.open();
    await gateway.key(["admin"]);
    for (const path of ["/docs", "/docs/swagger-ui.css", "/openapi.json", "/healthz", "/readyz"]) {
      expect([path, (await gateway.fetch(path)).status]).not.toEqual([path, 401]);
    }
    for (const path of ["/metrics", "/v1/none", "/v1/keys/", "//v1/keys", "/V1/keys"]) {
      expect([path, await ask(gateway, path, {})]).toEqual([path, 401]);
    }
    // Whether such a path is made straight is the runtime's to decide; there is nothing behind it either way.
    for (const path of [
      "/docs/../v1/keys",
      "/docs/%2e%2e/v1/keys",
      "/docs%2f..%2fv1/keys",
      "/docs/;/../../v1/keys",
    ]) {
      expect([path, [401, 404].includes(await ask(gateway, path, {}))]).toEqual([path, true]);
    }
  });

  test("no Host and no Origin matters: the key says who asks", async () => {
    await using gateway = await GatewaySandbox.open();
    const { key } = await gateway.key(["admin"]);
    const headers = {
      host: "flurry.example.com",
      origin: "https://app.example.com",
      authorization: `Bearer ${key}`,
    };
    expect(await ask(gateway, "/v1/jobs", headers)).toBe(200);
  });

  test("what is no key, another's secret and an unknown id are refused alike", async () => {
    await using gateway = await GatewaySandbox.open();
    const [{ key, id }, { key: other }] = [await gateway.key(["admin"]), await gateway.key(["admin"])];
    const secret = key.slice(-43);
    const bad = [
      "flk_",
      "x",
      `flk_${id}_${secret.slice(0, -1)}`,
      `flk_${id}_${secret}x`,
      `flk_${id}_${other.slice(-43)}`,
      `flk_0000000000000000_${secret}`,
      `flk_${id.toUpperCase()}_${secret}`,
      `flk_${id}_${"A".repeat(43)}`,
      "A".repeat(5000),
    ];
    const problems: Problem[] = [];
    for (const each of bad) problems.push(await gateway.problem("/v1/jobs", { key: each }));
    expect(new Set(problems.map(({ status, code, detail }) => `${status} ${code} ${detail}`))).toEqual(
      new Set(["401 UNAUTHENTICATED The key is not known"]),
    );
    expect((await gateway.fetch("/v1/jobs", { headers: { authorization: `bearer ${key}` } })).status).toBe(
      200,
    );
    expect((await gateway.fetch("/v1/jobs", { headers: { authorization: `Basic ${key}` } })).status).toBe(
      401,
    );
    expect((await gateway.fetch("/v1/jobs", { headers: { authorization: key } })).status).toBe(401);
  });

  test("a key that is removed is refused from then on", async () => {
    await using gateway = await GatewaySandbox.open();
    const [admin, reader] = [await gateway.key(["admin"]), await gateway.key(["read"])];
    expect((await gateway.fetch("/v1/jobs", { key: reader.key })).status).toBe(200);
    const removed = await gateway.fetch(`/v1/keys/${reader.id}`, { method: "DELETE", key: admin.key });
    expect(removed.status).toBe(204);
    expect((await gateway.fetch("/v1/jobs", { key: reader.key })).status).toBe(401);
    const again = await gateway.problem(`/v1/keys/${reader.id}`, { method: "DELETE", key: admin.key });
    expect(again).toMatchObject({ status: 404, code: "KEY_NOT_FOUND" });
  });

  test("the last admin key stays, also when two are removed at the same time", async () => {
    await using gateway = await GatewaySandbox.open();
    const keys = [await gateway.key(["admin"]), await gateway.key(["admin"])];
    await gateway.key(["read", "submit"]);
    const answers = await Promise.all(
      keys.map(({ id, key }) => gateway.fetch(`/v1/keys/${id}`, { method: "DELETE", key })),
    );
    expect(answers.map(({ status }) => status).toSorted()).toEqual([204, 409]);
    const left = answers.find(({ status }) => status === 409)!;
    expect((await problemFrom(left)).code).toBe("LAST_ADMIN_KEY");
  });

  test("secrets of keys are on no disk and in no other answer", async () => {
    await using gateway = await GatewaySandbox.open();
    const { key: admin } = await gateway.key(["admin"]);
    const json = { name: "a", scopes: ["read"], limits: { runningTasks: 2 } };
    const { key } = await gateway.json<{ key: string }>(
      "/v1/keys",
      { method: "POST", json, key: admin },
      201,
    );
    const secret = key.slice(-43);
    expect(await (await gateway.fetch("/v1/keys", { key: admin })).text()).not.toContain(secret);
    await gateway.end();
    for (const file of readdirSync(gateway.dir, { recursive: true, encoding: "utf8" })) {
      const path = join(gateway.dir, file);
      if (statSync(path).isFile()) expect([file, readFileSync(path).includes(secret)]).toEqual([file, false]);
    }
  });

  test("each key sees its own jobs, an admin all", async () => {
    await using gateway = await GatewaySandbox.open();
    const admin = await gateway.key(["admin"]);
    const [one, two] = [await gateway.key(["submit", "read"]), await gateway.key(["submit", "read"])];
    const job = await gateway.submit(jobOf(1), { key: one.key });
    expect(await gateway.problem(`/v1/jobs/${job.id}`, { key: two.key })).toMatchObject({ status: 404 });
    expect(await gateway.problem(`/v1/jobs/${job.id}/deliveries`, { key: two.key })).toMatchObject({
      status: 404,
    });
    expect((await gateway.json<Page<Job>>("/v1/jobs", { key: two.key })).items).toEqual([]);
    for (const { key } of [one, admin]) {
      expect((await gateway.json<Page<Job>>("/v1/jobs", { key })).items.map(({ id }) => id)).toEqual([
        job.id,
      ]);
    }
  });
});
