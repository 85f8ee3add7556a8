import { expect, test } from "bun:test";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import fc from "fast-check";
import { type OpenApiDocument, operationsOf, Values } from "../support/gateway-malformed.ts";
import { malformedRequest } from "../support/gateway-malformed-requests.ts";
import { GatewaySandbox, idleRuntime, problemFrom } from "../support/gateway-sandbox.ts";
import { ScriptedVms } from "../support/scripted-vms.ts";

const REQUESTS = 1500;

test("1,500 malformed requests, made from the OpenAPI document, each get a problem and change nothing", async () => {
  await using gateway = await GatewaySandbox.open({
    limits: { bodyBytes: 100_000, streamBytes: 150_000 },
    runtime: () => ({ ...idleRuntime(), vms: new ScriptedVms() }),
  });
  const document = await gateway.json<OpenApiDocument>("/openapi.json");
  const values = new Values(document);
  const operations = operationsOf(document);
  const tried = new Map<string, number>();
  const statuses = new Set<number>();
  await fc.assert(
    fc.asyncProperty(fc.gen(), async (g) => {
      const pick = (n: number) => g(fc.nat, { max: n - 1 });
      const operation = operations[pick(operations.length)]!;
      const request = malformedRequest(operation, values, pick);
      fc.pre(request !== undefined);
      const { path, init, what } = request;
      const response = await gateway.fetch(path, init);
      const label = `${operation.operationId} (${init.method} ${path.slice(0, 100)}): ${what}: ${response.status}`;
      if (response.status < 400 || response.status > 499)
        throw new Error(`${label} ${await response.text()}`);
      const { code, requestId, detail } = await problemFrom(response);
      expect([label, code.length > 2, requestId.length > 0, detail.length > 0]).toEqual([
        label,
        true,
        true,
        true,
      ]);
      tried.set(operation.operationId, (tried.get(operation.operationId) ?? 0) + 1);
      statuses.add(response.status);
    }),
    { seed: 1, numRuns: REQUESTS, maxSkipsPerRun: 1000 },
  );
  expect([...tried.keys()].sort()).toEqual(operations.map(({ operationId }) => operationId).sort());
  for (const status of [400, 404, 413, 415]) expect([...statuses]).toContain(status);
  await gateway.end();
  await using untouched = await GatewaySandbox.open();
  await untouched.end();
  expect(rowsOf(gateway.dir)).toEqual(rowsOf(untouched.dir));
}, 120_000);

test("what the malformed requests are made from is valid", async () => {
  await using gateway = await GatewaySandbox.open();
  const document = await gateway.json<OpenApiDocument>("/openapi.json");
  const values = new Values(document);
  for (const [id, path] of [["JobSubmit", "/v1/jobs:validate"]] as const) {
    const json = values.valid({ $ref: `#/components/schemas/${id}` }) as { worker: string };
    const answer = await gateway.fetch(path, { method: "POST", json });
    // It names a worker that is not there, and nothing else is wrong with it.
    expect(await problemFrom(answer)).toMatchObject({ code: "WORKER_NOT_FOUND" });
  }
  const worker = values.valid({ $ref: "#/components/schemas/WorkerSpec" }) as object;
  const module = values.valid({ $ref: "#/components/schemas/WorkerModule" });
  const http = values.valid({ $ref: "#/components/schemas/Serving" });
  for (const kind of [
    { image: "base", command: ["true"] },
    { module, http },
  ]) {
    const json = { ...worker, ...kind };
    const answer = await gateway.fetch("/v1/workers/a", { method: "PUT", json });
    expect([answer.status, answer.ok ? "" : await answer.text()]).toEqual([201, ""]);
  }
});

/** Number of rows of each table of a store that is closed. */
function rowsOf(dir: string): Record<string, number> {
  const database = new DatabaseSync(join(dir, "flurry.db"), { readOnly: true });
  try {
    const tables = database
      .prepare("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
      .all();
    return Object.fromEntries(
      tables.map(({ name }) => [
        name,
        Number(database.prepare(`SELECT count(*) AS n FROM "${name}"`).get()?.n),
      ]),
    );
  } finally {
    database.close();
  }
}
