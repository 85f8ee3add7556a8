import { isIPv4 } from "node:net";
import type { Context, MiddlewareHandler } from "hono";
import { createMiddleware } from "hono/factory";
import { FlurryError } from "../../errors/errors.ts";
import type { Scope } from "../api/mod.ts";
import type { GatewayContext, GatewayEnv, Principal } from "./context.ts";
import { parseKey, secretMatches } from "./keys.ts";

/** What tells nothing of anyone: whether the gateway lives, and how to talk to it. */
const OPEN_PATHS = /^\/(healthz|readyz|openapi\.json|docs(\/.*)?)?$/;

/** Who asks where no keys are needed. */
const EVERYONE: Principal = { owner: "", scopes: new Set<Scope>(["admin"]), limits: {} };

/**
 * Finds out who asks, and puts it into `c.var.principal`. Without any key in the store it is everyone on
 * this machine, but no web page of another origin; with keys it is who shows one. The store is asked
 * every time: a key that was removed ends with the request that removed it.
 *
 * @throws FlurryError UNAUTHENTICATED, FORBIDDEN
 */
export function authenticate(context: Pick<GatewayContext, "store">): MiddlewareHandler<GatewayEnv> {
  return createMiddleware<GatewayEnv>(async (c, next) => {
    if (OPEN_PATHS.test(c.req.path)) return next();
    c.set("principal", await principalOf(context, c));
    return next();
  });
}

/**
 * Lets those pass who have this scope, or `admin`.
 *
 * @throws FlurryError UNAUTHENTICATED, FORBIDDEN
 */
export function requireScope(scope: Scope): MiddlewareHandler<GatewayEnv> {
  return createMiddleware<GatewayEnv>(async (c, next) => {
    // Absent where a route was mounted without `authenticate`: then nobody may pass.
    const principal: Principal | undefined = c.var.principal;
    if (principal === undefined) throw unauthenticated(c, "This request has not been authenticated");
    if (!principal.scopes.has(scope) && !principal.scopes.has("admin")) {
      throw new FlurryError("FORBIDDEN", `The key ${principal.owner} lacks the scope "${scope}"`, {
        hint: `ask an admin for a key with the scope "${scope}"`,
      });
    }
    return next();
  });
}

/** Whether who asked some time ago could still ask: keys come and go. */
export async function isStillKnown(
  { store }: { store: Pick<GatewayContext["store"], "keys"> },
  { owner }: Pick<Principal, "owner">,
): Promise<boolean> {
  if (owner !== "") return (await store.keys.find(owner)) !== undefined;
  return (await store.keys.list()).length === 0;
}

async function principalOf({ store }: Pick<GatewayContext, "store">, c: Context): Promise<Principal> {
  const header = c.req.header("authorization");
  const shown = parseKey(/^bearer +(.*)$/i.exec(header ?? "")?.[1] ?? "");
  if (shown !== undefined) {
    const key = await store.keys.find(shown.id);
    if (secretMatches(shown.secret, key?.hash) && key !== undefined) {
      return { owner: key.id, scopes: new Set(key.scopes), limits: key.limits };
    }
  }
  if ((await store.keys.list()).length === 0) {
    refuseOtherSites(c);
    return EVERYONE;
  }
  throw unauthenticated(c, header === undefined ? "The request shows no key" : "The key is not known");
}

/**
 * Where no key is needed, a browser of this machine could be made to ask by any page that it shows: by
 * a name that is bound to a loopback address (seen in Host), or across sites (seen in Origin and
 * Sec-Fetch-Site).
 */
function refuseOtherSites(c: Context): void {
  const host = (c.req.header("host") ?? "").toLowerCase();
  if (!isLoopback(host)) {
    throw new FlurryError("FORBIDDEN", `Without keys, the host "${host}" is not answered`, {
      hint: "ask by 127.0.0.1, [::1] or localhost, or create a key",
    });
  }
  const origin = c.req.header("origin");
  const site = c.req.header("sec-fetch-site") ?? "none";
  const sameOrigin = origin === undefined || hostOf(origin) === host;
  if (!sameOrigin || (site !== "same-origin" && site !== "none")) {
    throw new FlurryError("FORBIDDEN", `Without keys, a page of ${origin ?? "another site"} may not ask`, {
      hint: "create a key, and let the page's server ask with it",
    });
  }
}

/** Whether a Host header (with or without a port) names this machine's loopback interface. */
export function isLoopback(host: string): boolean {
  if (!/^[a-z0-9.:[\]-]+$/i.test(host) || !URL.canParse(`http://${host}`)) return false;
  const { hostname } = new URL(`http://${host}`);
  return (
    hostname === "localhost" || hostname === "[::1]" || (isIPv4(hostname) && hostname.startsWith("127."))
  );
}

function hostOf(origin: string): string | undefined {
  return URL.canParse(origin) ? new URL(origin).host : undefined;
}

function unauthenticated(c: Context, message: string): FlurryError {
  c.header("WWW-Authenticate", 'Bearer realm="flurry"');
  return new FlurryError("UNAUTHENTICATED", message, { hint: 'send "Authorization: Bearer flk_…"' });
}
