import { describe, expect, test } from "bun:test";
import type { Job, Page, Task, Validated } from "../../runtime/api/mod.ts";
import { GatewaySandbox, jobOf, problemFrom } from "../support/gateway-sandbox.ts";

const NDJSON = { "content-type": "application/x-ndjson" };
const HEAD = JSON.stringify({ worker: { image: "base", command: ["cat"] } });
const NOBODY = "job_ffffffffffffffffffffffff";

describe("POST /v1/jobs", () => {
  test("stores a job and says where it is", async () => {
    await using gateway = await GatewaySandbox.open();
    const response = await gateway.fetch("/v1/jobs", {
      method: "POST",
      json: jobOf(3, { name: "three", tags: ["a", "b"], priority: 7 }),
    });
    expect(response.status).toBe(202);
    const job: Job = await response.json();
    expect(response.headers.get("location")).toBe(`/v1/jobs/${job.id}`);
    expect(response.headers.has("idempotent-replayed")).toBe(false);
    expect(job).toMatchObject({ name: "three", state: "queued", priority: 7, tags: ["a", "b"] });
    expect(job.tasks).toMatchObject({ total: 3, queued: 3 });
    expect(await gateway.json(`/v1/jobs/${job.id}`)).toMatchObject(job);
  });

  test("takes inputs as JSON and line by line alike", async () => {
    await using gateway = await GatewaySandbox.open();
    const inputs = ["text", 1, null, { a: [true] }, ""];
    const listed = await gateway.submit({ ...JSON.parse(HEAD), tasks: { inputs } });
    const body = [HEAD, ...inputs.map((input) => JSON.stringify(input))].join("\n");
    const streamed = await gateway.json("/v1/jobs", { method: "POST", headers: NDJSON, body }, 202);
    for (const { id } of [listed, streamed]) {
      const { items } = await gateway.json<Page<Task>>(`/v1/jobs/${id}/tasks`);
      expect(items.map(({ index, input }) => [index, input])).toEqual(
        inputs.map((input, index) => [index, input]),
      );
    }
  });

  test("names the line that is wrong, and stores nothing of that job", async () => {
    await using gateway = await GatewaySandbox.open();
    const bad: [string, RegExp][] = [
      [`${HEAD}\n1\n2\n{"a":\n4\n`, /^Line 4 is no JSON/],
      [`{"worker":\n1\n`, /^Line 1 is no JSON/],
      [`{"worker":{"image":"base"}}\n1\n`, /^The line 1 is not valid: line 1.worker.command/],
      ["", /^The body is empty/],
    ];
    for (const [body, detail] of bad) {
      const problem = await gateway.problem("/v1/jobs", { method: "POST", headers: NDJSON, body });
      expect(problem).toMatchObject({ status: 400, code: "BAD_ARGUMENT" });
      expect(problem.detail).toMatch(detail);
    }
    const headers = { "content-type": "application/json" };
    const empty = await gateway.problem("/v1/jobs", { method: "POST", headers });
    expect(empty.detail).toMatch(/^The body is empty/);
    expect((await gateway.json<Page<Job>>("/v1/jobs")).items).toEqual([]);
  });

  test("says in words what a name or an id has to be", async () => {
    await using gateway = await GatewaySandbox.open();
    const said = async (path: string, json?: object) => {
      const { errors = [] } = await gateway.problem(path, { method: json ? "POST" : "GET", json });
      return errors.map(({ path, message }) => `${path} ${message}`);
    };
    expect(await said("/v1/jobs/17")).toEqual([
      "path.id must be the id of a job: job_ and 24 hexadecimal digits",
    ]);
    expect(await said("/v1/jobs", jobOf(1, { worker: "Render" }))).toEqual([
      "body.worker must be the name of a worker, or name@version",
    ]);
  });

  test("refuses a NUL in any text that it would keep, and OpenAPI tells so", async () => {
    await using gateway = await GatewaySandbox.open();
    const url = "https://example.com/";
    const bad: [path: string, json: object, at: string][] = [
      ["/v1/jobs", jobOf(1, { name: "a\0b" }), "name"],
      ["/v1/jobs", jobOf(1, { tags: ["a", "\0"] }), "tags.1"],
      ["/v1/jobs", jobOf(1, { env: { A: "\0" } }), "env.A"],
      ["/v1/jobs", jobOf(1, { webhook: { url: `${url}\0` } }), "webhook.url"],
      ["/v1/jobs", jobOf(1, { webhook: { url, secret: "0123456789abcdef\0" } }), "webhook.secret"],
      ["/v1/jobs", jobOf(1, { worker: { image: "base", command: ["a", "\0"] } }), "worker.command.1"],
      ["/v1/jobs", jobOf(1, { worker: { image: "base", command: ["a"], cwd: "/\0" } }), "worker.cwd"],
      ["/v1/keys", { name: "a\0", scopes: ["admin"] }, "name"],
    ];
    for (const [path, json, at] of bad) {
      const problem = await gateway.problem(path, { method: "POST", json });
      expect(problem).toMatchObject({ status: 400, code: "BAD_ARGUMENT" });
      expect(JSON.stringify([at, problem.errors])).toContain(`${at}"`);
    }
    expect(await gateway.problem("/v1/jobs?tag=a%00b")).toMatchObject({ status: 400 });
    const document = await gateway.json<{ components: { schemas: Record<string, unknown> } }>(
      "/openapi.json",
    );
    expect(document.components.schemas.KeyCreate).toMatchObject({
      properties: { name: { pattern: "^[^\\0]*$" } },
    });
  });

  test("refuses other media types, encodings and bodies that are too large", async () => {
    await using gateway = await GatewaySandbox.open({ limits: { bodyBytes: 10_000, streamBytes: 20_000 } });
    const post = (body: BodyInit, headers: Record<string, string>) =>
      gateway.problem("/v1/jobs", { method: "POST", body, headers });
    const json = JSON.stringify(jobOf(1));
    expect(await post(json, { "content-type": "application/x-www-form-urlencoded" })).toMatchObject({
      status: 415,
      detail: "A job is not taken as application/x-www-form-urlencoded",
      hint: "send it with Content-Type: application/json, or application/x-ndjson",
    });
    expect(await post(json, { "content-type": "application/json; charset=latin1" })).toMatchObject({
      status: 415,
    });
    expect(await post(json, { "content-type": "application/json", "content-encoding": "br" })).toMatchObject({
      status: 415,
      code: "MEDIA_TYPE_UNSUPPORTED",
    });
    const large = JSON.stringify(jobOf(1, { name: "x".repeat(10_000) }));
    expect(await post(large, { "content-type": "application/json" })).toMatchObject({
      status: 413,
      code: "BODY_TOO_LARGE",
      retryable: false,
    });
    const lines = `${HEAD}\n${"1\n".repeat(20_000)}`;
    expect(await post(lines, NDJSON)).toMatchObject({ status: 413, code: "BODY_TOO_LARGE" });
  });

  test("refuses a webhook to this machine, also when it only checks", async () => {
    await using gateway = await GatewaySandbox.open();
    const json = jobOf(1, { webhook: { url: "http://127.0.0.1:1/" } });
    for (const path of ["/v1/jobs", "/v1/jobs:validate"]) {
      expect(await gateway.problem(path, { method: "POST", json })).toMatchObject({
        status: 422,
        code: "WEBHOOK_FORBIDDEN",
      });
    }
  });

  test("gives the same job for the same key and body, in parallel too", async () => {
    await using gateway = await GatewaySandbox.open();
    const send = (json: object, key: string) =>
      gateway.fetch("/v1/jobs", { method: "POST", json, headers: { "idempotency-key": key } });
    const answers = await Promise.all(Array.from({ length: 20 }, () => send(jobOf(50), "once")));
    const jobs: Job[] = await Promise.all(answers.map((answer) => answer.json()));
    expect(answers.map(({ status }) => status)).toEqual(Array(20).fill(202));
    expect(new Set(jobs.map(({ id }) => id)).size).toBe(1);
    expect(answers.filter(({ headers }) => headers.get("idempotent-replayed") === "true").length).toBe(19);
    expect((await gateway.json<Page<Job>>("/v1/jobs")).items.length).toBe(1);
    expect(await problemFrom(await send(jobOf(51), "once"))).toMatchObject({
      status: 422,
      code: "IDEMPOTENCY_MISMATCH",
    });
    const other: Job = await (await send(jobOf(51), "twice")).json();
    expect(other.id).not.toBe(jobs[0]!.id);
    expect(await problemFrom(await send(jobOf(1), "x".repeat(256)))).toMatchObject({ status: 400 });
  });

  test("tells a repeated stream from another one", async () => {
    await using gateway = await GatewaySandbox.open();
    const send = (body: string) =>
      gateway.fetch("/v1/jobs", { method: "POST", body, headers: { ...NDJSON, "idempotency-key": "k" } });
    const first: Job = await (await send(`${HEAD}\n1\n2\n`)).json();
    const again = await send(`${HEAD}\n1\n2\n`);
    expect(again.headers.get("idempotent-replayed")).toBe("true");
    expect(((await again.json()) as Job).id).toBe(first.id);
    expect((await send(`${HEAD}\n1\n3\n`)).status).toBe(422);
  });
});

describe("POST /v1/jobs:validate", () => {
  test("checks and stores nothing", async () => {
    await using gateway = await GatewaySandbox.open();
    const check = { method: "POST", json: jobOf(3) };
    expect(await gateway.json<Validated>("/v1/jobs:validate", check)).toEqual({
      valid: true,
      tasks: 3,
      worker: { image: "base" },
    });
    const unknown = { method: "POST", json: jobOf(1, { worker: "nobody" }) };
    expect(await gateway.problem("/v1/jobs:validate", unknown)).toMatchObject({ code: "WORKER_NOT_FOUND" });
    const wrong = { method: "POST", json: jobOf(0, { priority: 11, more: 1 }) };
    const problem = await gateway.problem("/v1/jobs:validate", wrong);
    expect(problem.code).toBe("BAD_ARGUMENT");
    expect(problem.errors?.map(({ path }) => path).sort()).toEqual([
      "body",
      "body.priority",
      "body.tasks.count",
    ]);
    expect((await gateway.json<Page<Job>>("/v1/jobs")).items).toEqual([]);
  });
});

describe("GET /v1/jobs", () => {
  test("lists by state and tag, page by page", async () => {
    await using gateway = await GatewaySandbox.open();
    const ids: string[] = [];
    for (let n = 0; n < 5; n++)
      ids.push((await gateway.submit(jobOf(1, { tags: [n % 2 ? "odd" : "even"] }))).id);
    await gateway.fetch(`/v1/jobs/${ids[0]}/cancel`, { method: "POST" });
    const seen: string[] = [];
    let next: string | undefined;
    do {
      const cursor = next === undefined ? "" : `&cursor=${encodeURIComponent(next)}`;
      const page = await gateway.json<Page<Job>>(`/v1/jobs?limit=2${cursor}`);
      expect(page.items.length).toBeLessThanOrEqual(2);
      seen.push(...page.items.map(({ id }) => id));
      next = page.next;
    } while (next !== undefined);
    expect(seen).toEqual([...ids].reverse());
    const idsOf = async (query: string) =>
      (await gateway.json<Page<Job>>(`/v1/jobs?${query}`)).items.map(({ id }) => id);
    expect(await idsOf("tag=odd")).toEqual([ids[3]!, ids[1]!]);
    expect(await idsOf("state=canceled")).toEqual([ids[0]!]);
    expect(await idsOf("state=running")).toEqual([]);
    for (const query of [
      "limit=0",
      "limit=1001",
      "limit=x",
      "state=odd",
      "cursor=!!!",
      "tag=",
      "limit=1&limit=2",
    ]) {
      expect(await gateway.problem(`/v1/jobs?${query}`)).toMatchObject({ status: 400, code: "BAD_ARGUMENT" });
    }
  });
});

describe("jobs and tasks", () => {
  test("cancel, retry and removal go through their states", async () => {
    await using gateway = await GatewaySandbox.open();
    const { id } = await gateway.submit(jobOf(2));
    // Many name the media type of a body also when there is none.
    const headers = { "content-type": "application/json" };
    const post = (path: string, status: number) =>
      gateway.json<Job>(`/v1/jobs/${id}${path}`, { method: "POST", headers }, status);
    expect(await gateway.problem(`/v1/jobs/${id}`, { method: "DELETE" })).toMatchObject({
      status: 409,
      code: "JOB_ACTIVE",
    });
    expect(await gateway.problem(`/v1/jobs/${id}/retry`, { method: "POST" })).toMatchObject({ status: 409 });
    expect((await post("/cancel", 202)).reason).toMatch(/^Canceled/);
    expect((await gateway.json(`/v1/jobs/${id}`)).state).toBe("canceled");
    expect((await post("/cancel", 202)).state).toBe("canceled");
    expect((await post("/tasks/1/retry", 202)).tasks).toMatchObject({ queued: 1, canceled: 1 });
    await gateway.finish(await gateway.claim());
    expect((await post("/retry", 202)).tasks).toMatchObject({ queued: 1, succeeded: 1 });
    await gateway.finish(await gateway.claim());
    expect((await gateway.json(`/v1/jobs/${id}`)).state).toBe("succeeded");
    const removed = await gateway.fetch(`/v1/jobs/${id}`, { method: "DELETE" });
    expect([removed.status, await removed.text()]).toEqual([204, ""]);
    expect(await gateway.problem(`/v1/jobs/${id}`)).toMatchObject({ code: "JOB_NOT_FOUND" });
  });

  test("tasks are listed by state, and each is seen", async () => {
    await using gateway = await GatewaySandbox.open();
    const { id } = await gateway.submit(jobOf(5));
    await gateway.finish(await gateway.claim());
    const page = await gateway.json<Page<Task>>(`/v1/jobs/${id}/tasks?state=queued&limit=3`);
    expect(page.items.map(({ index }) => index)).toEqual([1, 2, 3]);
    const rest = await gateway.json<Page<Task>>(
      `/v1/jobs/${id}/tasks?state=queued&limit=3&cursor=${page.next}`,
    );
    expect(rest.items.map(({ index }) => index)).toEqual([4]);
    expect(rest.next).toBeUndefined();
    const task = await gateway.json<Task>(`/v1/jobs/${id}/tasks/0`);
    expect(task).toMatchObject({ index: 0, state: "succeeded", exitCode: 0, attempt: 1 });
    expect(await gateway.problem(`/v1/jobs/${id}/tasks/5`)).toMatchObject({
      status: 404,
      code: "TASK_NOT_FOUND",
    });
    for (const index of ["-1", "1.5", "x", "1e99", "%00"]) {
      expect((await gateway.problem(`/v1/jobs/${id}/tasks/${index}`)).status).toBe(400);
    }
  });

  test("another key's job is as if there were none", async () => {
    await using gateway = await GatewaySandbox.open();
    const admin = await gateway.key(["admin"]);
    const own = await gateway.key(["submit", "read"]);
    const other = await gateway.key(["submit", "read"]);
    const { id } = await gateway.submit(jobOf(1), { key: own.key });
    const list = async (key: string) => (await gateway.json<Page<Job>>("/v1/jobs", { key })).items.length;
    expect([await list(own.key), await list(admin.key), await list(other.key)]).toEqual([1, 1, 0]);
    const requests: [string, string][] = [
      ["GET", ""],
      ["DELETE", ""],
      ["GET", "/tasks"],
      ["GET", "/tasks/0"],
      ["GET", "/events"],
      ["GET", "/results"],
      ["GET", "/logs"],
      ["GET", "/artifacts"],
      ["GET", "/artifacts/0/a"],
      ["GET", "/deliveries"],
      ["POST", "/cancel"],
      ["POST", "/retry"],
      ["POST", "/tasks/0/retry"],
    ];
    for (const [method, path] of requests) {
      const theirs = await gateway.problem(`/v1/jobs/${id}${path}`, { method, key: other.key });
      const nobodys = await gateway.problem(`/v1/jobs/${NOBODY}${path}`, { method, key: other.key });
      expect([path, theirs.code, theirs.status]).toEqual([path, "JOB_NOT_FOUND", 404]);
      expect(nobodys.detail.replace(NOBODY, id)).toBe(theirs.detail);
    }
    expect((await gateway.json(`/v1/jobs/${id}`, { key: admin.key })).state).toBe("queued");
    const reader = await gateway.key(["read"]);
    const refused = await gateway.problem(`/v1/jobs/${id}/cancel`, { method: "POST", key: reader.key });
    expect(refused).toMatchObject({ status: 403, code: "FORBIDDEN" });
    expect(await gateway.problem("/v1/jobs")).toMatchObject({ status: 401, code: "UNAUTHENTICATED" });
  });
});

describe("every answer", () => {
  test("has a request id and says what it does not take", async () => {
    await using gateway = await GatewaySandbox.open();
    const sent = await gateway.fetch("/v1/jobs", { headers: { "x-request-id": "mine-1" } });
    expect(sent.headers.get("x-request-id")).toBe("mine-1");
    const odd = await gateway.fetch("/v1/jobs", { headers: { "x-request-id": "<script>" } });
    expect(odd.headers.get("x-request-id")).toMatch(/^[0-9a-f-]{36}$/);
    expect(odd.headers.get("x-content-type-options")).toBe("nosniff");
    expect(odd.headers.get("content-security-policy")).toContain("default-src 'none'");
    const refused = await gateway.fetch(`/v1/jobs/${NOBODY}/cancel`);
    expect(refused.headers.get("allow")).toBe("POST");
    expect(await problemFrom(refused)).toMatchObject({ status: 405, code: "METHOD_NOT_ALLOWED" });
    const put = await gateway.fetch("/v1/jobs", { method: "PUT", body: "x" });
    expect(put.headers.get("allow")).toBe("POST, GET, HEAD");
    expect(put.status).toBe(405);
    expect(await gateway.problem("/v2")).toMatchObject({ status: 404, code: "ROUTE_NOT_FOUND" });
    expect(await gateway.problem("/v1/jobs/../../etc/passwd")).toMatchObject({ status: 404 });
  });

  test("the document has every operation, with all that tells people what it does", async () => {
    await using gateway = await GatewaySandbox.open();
    interface Operation {
      operationId?: string;
      tags?: string[];
      summary?: string;
      responses: Record<string, { content?: object }>;
    }
    const document = await gateway.json<{
      openapi: string;
      paths: Record<string, Record<string, Operation>>;
      components: { securitySchemes: object; schemas: object };
    }>("/openapi.json");
    expect(document.openapi).toBe("3.1.0");
    expect(Object.keys(document.components.securitySchemes)).toEqual(["key"]);
    const operations = Object.entries(document.paths).flatMap(([path, item]) =>
      Object.entries(item).map(([method, operation]) => ({ path, method, ...operation })),
    );
    for (const { path, operationId, tags, summary, responses } of operations) {
      expect([path, operationId !== undefined, tags?.length, summary !== undefined]).toEqual([
        path,
        true,
        1,
        true,
      ]);
      if (path === "/healthz") continue;
      expect(Object.keys(responses)).toContain("400");
      expect(Object.keys(responses["500"]?.content ?? {})).toEqual(["application/problem+json"]);
    }
    expect(new Set(operations.map(({ operationId }) => operationId)).size).toBe(operations.length);
    expect(operations.map(({ path, method }) => `${method} ${path}`)).toContain(
      "get /v1/jobs/{id}/artifacts/{task}/{path}",
    );
    // Every reference leads somewhere.
    for (const [, name] of JSON.stringify(document).matchAll(/#\/components\/schemas\/(\w+)/g)) {
      expect(Object.keys(document.components.schemas)).toContain(name!);
    }
  });
});
