import { createRoute, OpenAPIHono, z } from "@hono/zod-openapi";
import type { Context } from "hono";
import { FlurryError } from "../../errors/errors.ts";
import { ArtifactPage, JobId, PageQuery } from "../api/mod.ts";
import type { StoredArtifact } from "../jobs/ports.ts";
import { requireScope } from "./auth.ts";
import { namesEtag, rangeOf } from "./byte-range.ts";
import type { GatewayContext, GatewayEnv } from "./context.ts";
import { JobPath, TaskIndex } from "./jobs-routes.ts";
import { jsonResponse, problems } from "./openapi.ts";
import { ownJob } from "./own-job.ts";
import { pagedBody } from "./paged-body.ts";
import { InvalidRequest } from "./problem.ts";

/** What a browser may show: none of these runs anything. All else is only to be saved. */
const SHOWN: Readonly<Record<string, string>> = {
  txt: "text/plain; charset=utf-8",
  log: "text/plain; charset=utf-8",
  csv: "text/csv; charset=utf-8",
  json: "application/json",
  png: "image/png",
  jpg: "image/jpeg",
  jpeg: "image/jpeg",
  gif: "image/gif",
  webp: "image/webp",
  mp4: "video/mp4",
};

const ArtifactPath = z.object({
  id: JobId,
  task: TaskIndex,
  path: z.string().min(1).max(4096).meta({ description: "Below /out; it may have slashes" }),
});

const listArtifacts = createRoute({
  method: "get",
  path: "/v1/jobs/{id}/artifacts",
  operationId: "listArtifacts",
  tags: ["jobs"],
  summary: "List the files that a job's tasks left in /out",
  middleware: requireScope("read"),
  request: { params: JobPath, query: PageQuery.extend({ task: TaskIndex.optional() }) },
  responses: { 200: jsonResponse("A page of artifacts", ArtifactPage), ...problems(404) },
});

const readArtifact = createRoute({
  method: "get",
  path: "/v1/jobs/{id}/artifacts/{task}/{path}",
  operationId: "readArtifact",
  tags: ["jobs"],
  summary: "Read a file that a task left in /out",
  description: "HEAD gives its size, type and ETag. One range of bytes can be asked for.",
  request: {
    params: ArtifactPath,
    headers: z.object({
      range: z.string().optional().meta({ example: "bytes=0-1023" }),
      "if-range": z.string().optional().meta({ description: "ETag that the range is to be of" }),
      "if-none-match": z.string().optional().meta({ description: "ETags that the asker has" }),
    }),
  },
  responses: {
    200: bytes("The whole file"),
    206: bytes("The range"),
    304: { description: "The asker has it" },
    ...problems(404, 416),
  },
});

/** The files that tasks leave. */
export function artifactRoutes(context: GatewayContext): OpenAPIHono<GatewayEnv> {
  const app = new OpenAPIHono<GatewayEnv>();

  app.openapi(listArtifacts, async (c) => {
    const { job } = await ownJob(context, c, c.req.valid("param").id);
    return c.json(await context.store.jobs.artifacts(job.id, c.req.valid("query")), 200);
  });

  // OpenAPI has no parameter with slashes: it is described apart from how it is matched.
  app.openAPIRegistry.registerPath(readArtifact);
  app.get("/v1/jobs/:id/artifacts/:task/:path{[\\s\\S]+}", requireScope("read"), async (c) => {
    const params = ArtifactPath.safeParse(c.req.param());
    if (!params.success) throw new InvalidRequest("path", params.error);
    const { id, task, path } = params.data;
    await ownJob(context, c, id);
    // Looked up as it stands: it never becomes a path of this machine.
    const stored = await context.store.jobs.artifact(id, task, path);
    if (stored === undefined) throw notFound(id, task, path);
    return answerArtifact(context, c, stored);
  });

  return app;
}

async function answerArtifact(
  context: GatewayContext,
  c: Context<GatewayEnv>,
  { artifact, blob }: StoredArtifact,
): Promise<Response> {
  const { size, sha256, path } = artifact;
  const etag = `"${sha256}"`;
  c.header("ETag", etag);
  c.header("Accept-Ranges", "bytes");
  c.header("Cache-Control", "private, no-cache");
  if (namesEtag(c.req.header("if-none-match"), etag)) return c.body(null, 304);
  const ifRange = c.req.header("if-range");
  const range = ifRange === undefined || ifRange === etag ? rangeOf(c.req.header("range"), size) : undefined;
  if (range === "unsatisfiable") {
    c.header("Content-Range", `bytes */${size}`);
    throw new FlurryError("RANGE_NOT_SATISFIABLE", `The range is outside of the ${size} bytes of ${path}`);
  }
  const { start, end } = range ?? { start: 0, end: size };
  const name = path.slice(path.lastIndexOf("/") + 1);
  const shown = SHOWN[/\.([a-z0-9]+)$/i.exec(name)?.[1]?.toLowerCase() ?? ""];
  c.header("Content-Type", shown ?? "application/octet-stream");
  c.header("Content-Disposition", `${shown ? "inline" : "attachment"}; filename*=UTF-8''${encoded(name)}`);
  c.header("Content-Security-Policy", "default-src 'none'; sandbox; frame-ancestors 'none'");
  // Bun sends it for HEAD only, and the content in chunks.
  c.header("Content-Length", String(end - start));
  if (range !== undefined) c.header("Content-Range", `bytes ${start}-${end - 1}/${size}`);
  const status = range === undefined ? 200 : 206;
  if (c.req.method === "HEAD") return c.body(null, status);
  const content = await context.store.blobs.get(blob, range);
  if (content === undefined) throw notFound("", artifact.task, path);
  return c.body(
    pagedBody(() => complete(context, content, end - start), context.signal),
    status,
  );
}

/** The content with its whole length: the runtime would give a shorter one a shorter Content-Length. */
async function* complete(
  { metrics }: GatewayContext,
  content: ReadableStream<Uint8Array>,
  bytes: number,
): AsyncGenerator<Uint8Array> {
  using _counted = metrics.stream("artifacts");
  let left = bytes;
  for await (const chunk of content) {
    left -= chunk.byteLength;
    yield chunk;
  }
  if (left !== 0) throw new FlurryError("STORE_FAILED", `An artifact's content has ${left} bytes too few`);
}

function notFound(job: string, task: number, path: string): FlurryError {
  const shown = JSON.stringify(path.slice(0, 200));
  return new FlurryError("ARTIFACT_NOT_FOUND", `Task ${task} of job ${job} has left no file ${shown}`, {
    hint: "flurry job artifacts, or GET /v1/jobs/{id}/artifacts, lists them",
  });
}

/** As RFC 8187 wants it; a lone surrogate, which has no UTF-8, becomes U+FFFD. */
function encoded(name: string): string {
  return encodeURIComponent(name.toWellFormed()).replace(/['()*]/g, (sign) => {
    return `%${sign.charCodeAt(0).toString(16).toUpperCase()}`;
  });
}

function bytes(description: string) {
  const header = { schema: { type: "string" as const } };
  return {
    description,
    headers: { ETag: header, "Content-Range": header, "Content-Disposition": header },
    content: { "application/octet-stream": { schema: { type: "string" as const, format: "binary" } } },
  };
}
