import { randomBytes } from "node:crypto";
import type { Context, MiddlewareHandler } from "hono";
import { getCookie } from "hono/cookie";
import { createMiddleware } from "hono/factory";
import { describeError, FlurryError } from "../../errors/errors.ts";
import { isModule, type ModuleSpec } from "../api/mod.ts";
import type { Store, StoredWorker } from "../jobs/ports.ts";
import type { ServedVersion } from "../workers/js/js-services.ts";
import { authenticate, isLoopback, isStillKnown, requireScope } from "./auth.ts";
import type { GatewayContext, GatewayEnv } from "./context.ts";
import { answerProblem } from "./problem.ts";

/** `NAME.localhost` is this machine to browsers and to curl (RFC 6761, 6.3). */
const LOCAL_SUFFIX = ".localhost";
const SESSION_COOKIE = "flurry-session";
/** Longest name of a session. */
const MAX_SESSION = 256;
/** Of a path below the gateway's own origin: a worker's page is not to speak for who looks at it. */
const SANDBOX = "sandbox allow-downloads allow-forms allow-modals allow-popups allow-scripts";

/** Errors whose own status says the right thing to who asks a worker; all others are a bad gateway. */
const OWN_STATUS: ReadonlySet<number> = new Set([400, 401, 403, 404, 413, 499, 501, 503, 504]);

/** Where secrets come from. */
interface SecretsOwner {
  store: Pick<Store, "secrets" | "keys">;
}

/** A worker that is asked, and where. */
interface Target {
  name: string;
  /** Path that its own begins after; "" when it is asked by a host name. */
  prefix: string;
}

/**
 * Answers requests to workers: below /w/NAME/, with `NAME.localhost` in Host, or with a host name that the
 * worker has been given. All else is passed on.
 */
export function answerWithWorkers(context: GatewayContext): MiddlewareHandler<GatewayEnv> {
  const allowed = authenticate(context);
  const mayAsk = requireScope("submit");
  return createMiddleware<GatewayEnv>(async (c, next) => {
    const target = await targetOf(context, c);
    if (!target) return await next();
    const worker = await context.hosts.worker(target.name);
    const answer = async () => {
      c.res = await answerOrProblem(context, c, { ...target, worker });
    };
    if (worker?.spec.http?.access !== "key") return await answer();
    await allowed(c, async () => {
      await mayAsk(c, answer);
    });
  });
}

async function targetOf({ hosts }: GatewayContext, c: Context<GatewayEnv>): Promise<Target | undefined> {
  const name = /^\/w\/([^/]{1,63})(?=\/|$)/.exec(c.req.path)?.[1];
  if (name !== undefined) return { name, prefix: `/w/${name}` };
  const host = (c.req.header("host") ?? "").toLowerCase().replace(/:\d+$/, "");
  if (host.endsWith(LOCAL_SUFFIX)) return { name: host.slice(0, -LOCAL_SUFFIX.length), prefix: "" };
  if (host === "" || isLoopback(host)) return undefined;
  const given = await hosts.find(host);
  return given === undefined ? undefined : { name: given, prefix: "" };
}

async function answerOrProblem(
  context: GatewayContext,
  c: Context<GatewayEnv>,
  target: Target & { worker: StoredWorker | undefined },
): Promise<Response> {
  try {
    return withHeaders(await answerOf(context, c, target), c, target);
  } catch (error) {
    const status = statusOf(error);
    const problem = answerProblem(c, error, status);
    problem.headers.set("x-request-id", c.var.requestId);
    problem.headers.set("cache-control", "no-store");
    return problem;
  }
}

async function answerOf(
  context: GatewayContext,
  c: Context<GatewayEnv>,
  { name, prefix, worker }: Target & { worker: StoredWorker | undefined },
): Promise<Response> {
  const { requests } = context.runtime;
  if (!worker || !isModule(worker.spec) || !requests) {
    throw new FlurryError("WORKER_NOT_FOUND", `There is no worker "${name}" that answers requests`, {
      hint: "flurry deploy worker.ts --name NAME deploys one",
    });
  }
  if (c.req.header("upgrade") !== undefined) {
    throw new FlurryError(
      "UPGRADE_UNSUPPORTED",
      `${c.req.path.slice(0, 200)} cannot become another protocol`,
      {
        hint: "WebSockets are not served; server-sent events are",
      },
    );
  }
  const url = new URL(c.req.raw.url);
  url.pathname = url.pathname.slice(prefix.length) || "/";
  if (prefix !== "" && c.req.path === prefix) {
    // Relative links of its pages lead below it.
    return new Response(null, { status: 308, headers: { location: `${prefix}/${url.search}` } });
  }
  const { session, cookie } = sessionOf(worker.spec, c, prefix);
  const served = servedVersion(context, worker);
  const answer = await requests.handle(served, c.req.raw, { url: url.href, session });
  if (cookie !== undefined) answer.headers.append("set-cookie", cookie);
  return answer;
}

/** A version of a module as its runtime gets it. */
export function servedVersion(context: SecretsOwner, worker: StoredWorker): ServedVersion {
  const { name, version, spec } = worker;
  return { name, version, spec: spec as ModuleSpec, secrets: () => secretsOf(context, worker) };
}

/** Which session a request belongs to; the cookie that tells of it if it is a new one. */
function sessionOf(
  { http }: ModuleSpec,
  c: Context<GatewayEnv>,
  prefix: string,
): { session?: string | undefined; cookie?: string | undefined } {
  const isolation = http?.isolation;
  if (isolation?.mode !== "session") return {};
  const { header, cookie: name = SESSION_COOKIE } = isolation;
  const given = header === undefined ? getCookie(c, name) : c.req.header(header);
  if (given !== undefined && given !== "" && given.length <= MAX_SESSION) return { session: given };
  if (header !== undefined) {
    throw new FlurryError("BAD_ARGUMENT", `The request names no session in the header ${header}`, {
      hint: `send 1 to ${MAX_SESSION} characters`,
    });
  }
  const session = randomBytes(18).toString("base64url");
  return { session, cookie: `${name}=${session}; Path=${prefix}/; HttpOnly; SameSite=Lax` };
}

/** Secrets of a worker, whoever asks it: those that the key which has deployed it may use. */
async function secretsOf(
  context: SecretsOwner,
  { name: worker, spec, owner: deployer }: StoredWorker,
): Promise<Record<string, string>> {
  const values: Record<string, string> = {};
  const wanted = Object.entries(spec.secrets);
  if (wanted.length === 0) return values;
  const isKnown = deployer !== undefined && (await isStillKnown(context, { owner: deployer }));
  for (const [variable, name] of wanted) {
    const value = await context.store.secrets.value(name, isKnown ? deployer : undefined);
    if (value === undefined) {
      throw new FlurryError(
        "SECRET_NOT_FOUND",
        `There is no secret "${name}" for ${variable} of "${worker}"`,
        {
          hint: isKnown
            ? "store it, for the key that has deployed this worker"
            : "nobody knows a key that has deployed this worker, so it has what is for all keys: deploy it again",
        },
      );
    }
    values[variable] = value;
  }
  return values;
}

function withHeaders(answer: Response, c: Context<GatewayEnv>, { prefix }: Target): Response {
  answer.headers.set("x-request-id", c.var.requestId);
  if (prefix !== "") answer.headers.append("content-security-policy", SANDBOX);
  return answer;
}

function statusOf(error: unknown): number {
  const { code, httpStatus } = describeError(error);
  if (code === "QUEUE_FULL" || code === "ADMISSION_REFUSED") return 503;
  return OWN_STATUS.has(httpStatus) ? httpStatus : 502;
}
