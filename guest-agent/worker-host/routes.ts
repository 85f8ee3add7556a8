/** A handler of one route. */
type RouteHandler = (request: Request, server: unknown) => unknown;

/** What a route of `Bun.serve` may be. */
type Route = RouteHandler | Response | false | Readonly<Record<string, RouteHandler | Response>>;

interface CompiledRoute {
  parts: readonly string[];
  route: Route;
}

/** The handler for a request, or undefined where no route takes it. */
export type RouteTable = (request: Request) => RouteHandler | undefined;

/**
 * The `routes` of `Bun.serve`: exact paths before ones with parameters (`/a/:id`), these before wildcards
 * (`/a/*`). A method that a route lacks, and `false`, go on to `fetch`.
 *
 * Source: https://bun.sh/docs/api/http#routing
 *
 * @throws TypeError for a route that is of no such kind
 */
export function compileRoutes(routes: Readonly<Record<string, unknown>>): RouteTable {
  const compiled = Object.entries(routes)
    .map(([path, route]) => ({ parts: path.split("/"), route: checkRoute(path, route) }))
    .sort((a, b) => rank(a.parts) - rank(b.parts));
  return (request) => {
    const path = new URL(request.url).pathname.split("/");
    for (const { parts, route } of compiled) {
      const params = match(parts, path);
      const handler = params && handlerOf(route, request.method);
      if (!handler) continue;
      Object.defineProperty(request, "params", { value: params, configurable: true });
      return handler;
    }
    return undefined;
  };
}

function checkRoute(path: string, route: unknown): Route {
  const isMethods =
    typeof route === "object" &&
    route !== null &&
    !(route instanceof Response) &&
    Object.keys(route).every((name) => /^[A-Z]+$/.test(name));
  if (typeof route === "function" || route === false || route instanceof Response || isMethods)
    return route as Route;
  throw new TypeError(
    `Cannot serve the route "${path}": it is no handler, no Response and no map of methods`,
  );
}

/** Smaller comes first. */
function rank(parts: CompiledRoute["parts"]): number {
  if (parts.at(-1) === "*") return 1000 - parts.length;
  return parts.filter((part) => part.startsWith(":")).length;
}

function match(parts: readonly string[], path: readonly string[]): Record<string, string> | undefined {
  const params: Record<string, string> = {};
  for (const [i, part] of parts.entries()) {
    if (part === "*" && i === parts.length - 1) return path.length > i ? params : undefined;
    const have = path[i];
    if (have === undefined) return undefined;
    if (part.startsWith(":") && have !== "") params[part.slice(1)] = decoded(have);
    else if (part !== have) return undefined;
  }
  return parts.length === path.length ? params : undefined;
}

function decoded(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part; // as Bun does: what is no escape stands for itself
  }
}

function handlerOf(route: Route, method: string): RouteHandler | undefined {
  if (route === false) return undefined;
  if (typeof route === "function") return route;
  if (route instanceof Response) return () => route.clone();
  const own = route[method] ?? (method === "HEAD" ? route.GET : undefined);
  return own instanceof Response ? () => own.clone() : own;
}
