import { createRoute, OpenAPIHono, z } from "@hono/zod-openapi";
import { GuestPath, VmFileWritten, VmId } from "../api/mod.ts";
import { arriving } from "./arriving.ts";
import { requireScope } from "./auth.ts";
import { tooLarge } from "./body.ts";
import type { GatewayContext, GatewayEnv, GatewayLimits } from "./context.ts";
import { jsonResponse, problems } from "./openapi.ts";
import { vmsOf, whose } from "./own-vms.ts";
import { pagedBody } from "./paged-body.ts";
import { InvalidRequest } from "./problem.ts";
import { ofVm, ofVmFile } from "./vm-errors.ts";

const binary = { "application/octet-stream": { schema: { type: "string" as const, format: "binary" } } };

const FilePath = z.object({
  id: VmId,
  path: z
    .string()
    .transform((path) => `/${path}`)
    .pipe(GuestPath)
    .meta({ description: "In the guest, without its first slash; it may have others" }),
});

const FileMode = z.object({
  mode: z
    .string()
    .regex(/^[0-7]{3}$/, "must be permission bits as three octal digits")
    .default("644")
    .meta({ description: "Permission bits, in octal", example: "755" }),
});

const readVmFile = createRoute({
  method: "get",
  path: "/v1/vms/{id}/files/{path}",
  operationId: "readVmFile",
  tags: ["vms"],
  summary: "Read a file of a VM",
  request: { params: FilePath },
  responses: {
    200: {
      description: "The file. An answer that breaks off is not all of it",
      headers: {
        "Flurry-Mode": { description: "Permission bits, in octal", schema: { type: "string" as const } },
        "Last-Modified": { schema: { type: "string" as const } },
      },
      content: binary,
    },
    ...problems(404, 501, 504),
  },
});

const writeVmFile = createRoute({
  method: "put",
  path: "/v1/vms/{id}/files/{path}",
  operationId: "writeVmFile",
  tags: ["vms"],
  summary: "Write a file into a VM",
  description:
    "The body is the file, whatever its media type. Missing directories are made; a file of that name is replaced when " +
    "all of the new one has arrived, and not before.",
  request: { params: FilePath, query: FileMode, body: { required: true, content: binary } },
  responses: { 200: jsonResponse("It is there", VmFileWritten), ...problems(404, 408, 413, 501, 504) },
});

/** Files of VMs. */
export function vmFileRoutes(context: GatewayContext): OpenAPIHono<GatewayEnv> {
  const app = new OpenAPIHono<GatewayEnv>();
  const route = "/v1/vms/:id/files/:path{[\\s\\S]+}";

  // OpenAPI has no parameter with slashes: both are described apart from how they are matched.
  app.openAPIRegistry.registerPath(readVmFile);
  app.get(route, requireScope("read"), async (c) => {
    const { id, path } = checked(FilePath, c.req.param(), "path");
    const gone = new AbortController();
    const signal = AbortSignal.any([gone.signal, c.req.raw.signal, context.signal]);
    const file = await vmsOf(context)
      .openFile(id, path, whose(c), signal)
      .catch((error) => {
        throw ofVmFile(error);
      });
    c.header("Content-Type", "application/octet-stream");
    c.header("Content-Disposition", "attachment");
    c.header("Flurry-Mode", (file.mode & 0o777).toString(8).padStart(3, "0"));
    c.header("Last-Modified", new Date(file.mtimeMs).toUTCString());
    if (c.req.method === "HEAD") {
      gone.abort();
      return c.body(null, 200);
    }
    const pieces = (reading: AbortSignal) => {
      reading.addEventListener("abort", () => gone.abort(), { once: true });
      return contentOf(context, file.body);
    };
    // Its length is not promised: a file can change while it is read.
    return c.body(pagedBody(pieces, context.signal), 200);
  });

  app.openAPIRegistry.registerPath(writeVmFile);
  app.put(route, requireScope("submit"), async (c) => {
    const { id, path } = checked(FilePath, c.req.param(), "path");
    const { mode } = checked(FileMode, c.req.query(), "query");
    const signal = AbortSignal.any([c.req.raw.signal, context.signal]);
    const body = streamOf(limited(c.req.raw.body, context.limits));
    const file = { path, mode: Number.parseInt(mode, 8), body };
    try {
      const { size } = await vmsOf(context).putFile(id, file, whose(c), signal);
      return c.json({ path, size }, 200);
    } catch (error) {
      throw ofVm(error);
    }
  });

  return app;
}

async function* contentOf(
  { metrics }: Pick<GatewayContext, "metrics">,
  body: ReadableStream<Uint8Array>,
): AsyncGenerator<Uint8Array> {
  using _counted = metrics.stream("files");
  yield* body;
}

/** What arrives of a file. @throws FlurryError BODY_TOO_LARGE, BODY_TIMEOUT, ABORTED */
async function* limited(
  body: ReadableStream<Uint8Array> | null,
  { streamBytes, bodySilenceMs }: GatewayLimits,
): AsyncGenerator<Uint8Array> {
  let bytes = 0;
  for await (const chunk of body ? arriving(body, { silenceMs: bodySilenceMs }) : []) {
    bytes += chunk.byteLength;
    if (bytes > streamBytes) throw tooLarge(streamBytes);
    yield chunk;
  }
}

/** A stream that reads on only when its reader does. */
function streamOf(chunks: AsyncGenerator<Uint8Array>): ReadableStream<Uint8Array> {
  return new ReadableStream<Uint8Array>(
    {
      async pull(controller) {
        const { done, value } = await chunks.next();
        if (done) controller.close();
        else controller.enqueue(value);
      },
      async cancel() {
        await chunks.return(undefined);
      },
    },
    { highWaterMark: 0 },
  );
}

function checked<T extends z.ZodType>(schema: T, value: unknown, what: string): z.output<T> {
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  throw new InvalidRequest(what, result.error);
}
