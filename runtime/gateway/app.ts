import { type Hook, OpenAPIHono } from "@hono/zod-openapi";
import type { Context, MiddlewareHandler, Next } from "hono";
import { methodNotAllowed } from "hono/method-not-allowed";
import { requestId } from "hono/request-id";
import { secureHeaders } from "hono/secure-headers";
import { FlurryError } from "../../errors/errors.ts";
import { authenticate } from "./auth.ts";
import { jsonBodies } from "./body.ts";
import type { GatewayContext, GatewayEnv } from "./context.ts";
import { documentOf } from "./openapi.ts";
import { answerProblem, InvalidRequest } from "./problem.ts";
import { answerWithWorkers } from "./worker-requests.ts";

export type GatewayApp = OpenAPIHono<GatewayEnv>;

/** What an app is made of besides what each has. */
export interface AppParts {
  /** Sees every request and its answer, problems too: traces, metrics, logs. The first is the outermost. */
  middleware?: readonly MiddlewareHandler<GatewayEnv>[];
  /** Routes, with whole paths; each asks for its scope by `requireScope`. */
  routes: readonly GatewayApp[];
}

/**
 * Puts the gateway's HTTP side together: request ids, headers, who asks, limits of bodies, routes, the
 * OpenAPI document of all of them, and every failure as a problem.
 */
export function createApp(context: GatewayContext, { middleware = [], routes }: AppParts): GatewayApp {
  const app: GatewayApp = new OpenAPIHono<GatewayEnv>({ defaultHook: refuseInvalid });
  app.use(requestId({ limitLength: 100 }));
  for (const each of middleware) app.use(each);
  // What a worker answers is the worker's own: no header of ours is added to it.
  app.use(answerWithWorkers(context), headers);
  app.use(methodNotAllowed({ app, onMethodNotAllowed: refuseMethod }));
  app.use(authenticate(context), jsonBodies(context.limits));
  for (const each of routes) app.route("/", each);
  app.openAPIRegistry.registerComponent("securitySchemes", "key", {
    type: "http",
    scheme: "bearer",
    description:
      "A key, as `flk_…`. None is needed while the gateway has none and is asked from its own machine",
  });
  let document: string | undefined;
  app.get("/openapi.json", (c) => {
    document ??= JSON.stringify(documentOf(app));
    return c.body(document, 200, { "content-type": "application/json" });
  });
  app.notFound((c) => {
    return answerProblem(c, new FlurryError("ROUTE_NOT_FOUND", `There is no ${c.req.path.slice(0, 200)}`));
  });
  app.onError((error, c) => answerProblem(c, endingOr(error, context.signal)));
  return app;
}

const setHeaders = secureHeaders({
  // Plain HTTP: TLS is for what stands in front.
  strictTransportSecurity: false,
  // Those of browsers that are gone, and of pages with scripts.
  xXssProtection: false,
  xDownloadOptions: false,
  xDnsPrefetchControl: false,
  xPermittedCrossDomainPolicies: false,
  originAgentCluster: false,
  xFrameOptions: "DENY",
  contentSecurityPolicy: { defaultSrc: ["'none'"], frameAncestors: ["'none'"] },
  overwrite: false,
});

/** Headers of every answer; those that a route has set stay. */
async function headers(c: Context<GatewayEnv>, next: Next): Promise<void> {
  await setHeaders(c, next);
  c.res.headers.set("x-request-id", c.var.requestId);
  if (!c.res.headers.has("cache-control")) c.res.headers.set("cache-control", "no-store");
}

const refuseInvalid: Hook<unknown, GatewayEnv, string, undefined> = (result) => {
  if (result.success) return undefined;
  const { target, error } = result;
  throw new InvalidRequest(target === "json" ? "body" : target === "param" ? "path" : target, error);
};

function refuseMethod(c: Context<GatewayEnv>, methods: string[]): Response {
  const error = new FlurryError(
    "METHOD_NOT_ALLOWED",
    `${c.req.path.slice(0, 200)} takes no ${c.req.method}`,
    {
      hint: `it takes ${methods.join(", ")}`,
    },
  );
  const answer = answerProblem(c, error);
  answer.headers.set("Allow", methods.join(", "));
  return answer;
}

/** What is given up because the gateway ends is to be asked again, of the next one. */
function endingOr(error: unknown, ending: AbortSignal): unknown {
  const aborted = error instanceof FlurryError && error.code === "ABORTED";
  if (!aborted || !ending.aborted) return error;
  return new FlurryError("SHUTTING_DOWN", "The gateway is ending", {
    hint: "ask again when it is back",
    cause: error,
  });
}
