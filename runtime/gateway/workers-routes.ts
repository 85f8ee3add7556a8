import { createRoute, OpenAPIHono, z } from "@hono/zod-openapi";
import { FlurryError } from "../../errors/errors.ts";
import {
  CurrentVersion,
  Name,
  type Page,
  PageQuery,
  WorkerPage,
  WorkerSpec,
  WorkerVersion,
} from "../api/mod.ts";
import type { Dispatcher } from "../jobs/dispatcher.ts";
import { familyOf } from "../jobs/family.ts";
import type { Readiness } from "../jobs/ports.ts";
import { requireScope } from "./auth.ts";
import type { GatewayContext, GatewayEnv } from "./context.ts";
import { jsonBody, jsonResponse, problems } from "./openapi.ts";

const tags = ["workers"];
const params = z.object({ name: Name });
/** Workers that are read from the store at a time for a list: each may have megabytes of files. */
const STEP = 10;
const WITHOUT_FILES = "Lists leave `files` and the code of modules empty; each version alone has them.";

const putWorker = createRoute({
  method: "put",
  path: "/v1/workers/{name}",
  operationId: "putWorker",
  tags,
  summary: "Deploy a worker",
  description:
    "Stores a new version and makes it the current one, and begins to make its parent ready. What equals the current " +
    "version, and comes with the same key, stays that version. Over HTTP a worker has the secrets of the key that " +
    "deployed it. Jobs that have been submitted keep theirs.",
  middleware: requireScope("submit"),
  request: { params, body: jsonBody(WorkerSpec) },
  responses: {
    200: jsonResponse("The current version is like this already", WorkerVersion),
    201: jsonResponse("The new version", WorkerVersion),
    ...problems(408, 413, 415, 507),
  },
});

const listWorkers = createRoute({
  method: "get",
  path: "/v1/workers",
  operationId: "listWorkers",
  tags,
  summary: "List the workers by name, each in its current version",
  description: WITHOUT_FILES,
  middleware: requireScope("read"),
  request: { query: PageQuery },
  responses: { 200: jsonResponse("A page of workers", WorkerPage), ...problems() },
});

const getWorker = createRoute({
  method: "get",
  path: "/v1/workers/{name}",
  operationId: "getWorker",
  tags,
  summary: "See a worker",
  middleware: requireScope("read"),
  request: {
    params,
    query: z.object({
      version: z.coerce
        .number()
        .int()
        .min(1)
        .optional()
        .meta({ description: "The current one if it is left out" }),
    }),
  },
  responses: { 200: jsonResponse("The version", WorkerVersion), ...problems(404) },
});

const listVersions = createRoute({
  method: "get",
  path: "/v1/workers/{name}/versions",
  operationId: "listWorkerVersions",
  tags,
  summary: "List a worker's versions, newest first",
  description: WITHOUT_FILES,
  middleware: requireScope("read"),
  request: { params, query: PageQuery },
  responses: { 200: jsonResponse("A page of versions", WorkerPage), ...problems(404) },
});

const setCurrent = createRoute({
  method: "put",
  path: "/v1/workers/{name}/current",
  operationId: "setCurrentWorker",
  tags,
  summary: "Go back, or forward, to a version",
  middleware: requireScope("submit"),
  request: { params, body: jsonBody(CurrentVersion) },
  responses: {
    200: jsonResponse("The version that is current now", WorkerVersion),
    ...problems(404, 408, 413, 415, 507),
  },
});

const deleteWorker = createRoute({
  method: "delete",
  path: "/v1/workers/{name}",
  operationId: "deleteWorker",
  tags,
  summary: "Remove a worker with all versions",
  description: "Jobs that have been submitted go on.",
  middleware: requireScope("submit"),
  request: { params },
  responses: { 204: { description: "It is gone" }, ...problems(404, 507) },
});

/** What runs a job's tasks. */
export function workersRoutes({
  store,
  dispatcher,
  runtime,
  hosts,
}: GatewayContext): OpenAPIHono<GatewayEnv> {
  const app = new OpenAPIHono<GatewayEnv>();

  /** A version with the state that its parent has here. */
  function shown({ name, version, current, spec, createdAt }: WorkerVersion): WorkerVersion {
    return { name, version, current, ...readinessOf(dispatcher, spec), spec, createdAt };
  }

  function prepare({ name, version, spec }: WorkerVersion): void {
    dispatcher.prepare(familyOf(spec), async () => {
      const current = await hosts.worker(name);
      return (current?.version === version ? current : await store.workers.get(name, version))?.spec;
    });
  }

  async function listed(
    query: z.infer<typeof PageQuery>,
    read: (query: z.infer<typeof PageQuery>) => Promise<Page<WorkerVersion>>,
  ): Promise<Page<WorkerVersion>> {
    const items: WorkerVersion[] = [];
    let cursor = query.cursor;
    do {
      const page = await read({ cursor, limit: Math.min(STEP, query.limit - items.length) });
      items.push(...page.items.map(shown).map(withoutFiles));
      cursor = page.next;
    } while (cursor !== undefined && items.length < query.limit);
    return { items, next: cursor };
  }

  app.openapi(putWorker, async (c) => {
    const spec = c.req.valid("json");
    const { name } = c.req.valid("param");
    for (const host of spec.http?.hosts ?? []) {
      const taken = await hosts.find(host);
      if (taken === undefined || taken === name) continue;
      throw new FlurryError("BAD_ARGUMENT", `The host ${host} belongs to the worker "${taken}"`, {
        hint: `take it from there first, or remove that worker`,
      });
    }
    const { worker, created } = await store.workers.put(name, spec, c.var.principal.owner);
    hosts.changed(name);
    prepare(worker);
    return c.json(shown(worker), created ? 201 : 200);
  });

  app.openapi(listWorkers, async (c) => {
    return c.json(await listed(c.req.valid("query"), (query) => store.workers.list(query)), 200);
  });

  app.openapi(getWorker, async (c) => {
    const { name } = c.req.valid("param");
    const { version } = c.req.valid("query");
    const worker = await store.workers.get(name, version);
    if (worker === undefined) throw notFound(name, version);
    return c.json(shown(worker), 200);
  });

  app.openapi(listVersions, async (c) => {
    const { name } = c.req.valid("param");
    const page = await listed(c.req.valid("query"), (query) => store.workers.versions(name, query));
    if (page.items.length === 0 && (await store.workers.get(name)) === undefined) throw notFound(name);
    return c.json(page, 200);
  });

  app.openapi(setCurrent, async (c) => {
    const { version } = c.req.valid("json");
    const worker = await store.workers.setCurrent(c.req.valid("param").name, version);
    hosts.changed(worker.name);
    prepare(worker);
    return c.json(shown(worker), 200);
  });

  app.openapi(deleteWorker, async (c) => {
    const { name } = c.req.valid("param");
    if (!(await store.workers.remove(name))) throw notFound(name);
    hosts.changed(name);
    runtime.requests?.remove(name);
    return c.body(null, 204);
  });

  return app;
}

function withoutFiles(worker: WorkerVersion): WorkerVersion {
  const { spec } = worker;
  const module = spec.module && { ...spec.module, code: "" };
  return { ...worker, spec: { ...spec, files: [], ...(module && { module }) } };
}

/** State of a version's parent, with no more fields than there are. */
export function readinessOf(dispatcher: Pick<Dispatcher, "readiness">, spec: WorkerSpec): Readiness {
  const { state, step, error } = dispatcher.readiness(familyOf(spec));
  return { state, ...(step !== undefined && { step }), ...(error !== undefined && { error }) };
}

export function notFound(name: string, version?: number): FlurryError {
  const what = version === undefined ? `worker "${name}"` : `version ${version} of the worker "${name}"`;
  return new FlurryError("WORKER_NOT_FOUND", `There is no ${what}`, {
    hint: "PUT /v1/workers/{name} deploys one",
  });
}
