import { describe, expect, test } from "bun:test";
import { compileRoutes } from "../../guest-agent/worker-host/routes.ts";

/** What a table answers with, by the real server's side: `none` where the request goes on to `fetch`. */
function asker(routes: Record<string, unknown>) {
  const table = compileRoutes(routes);
  return async (path: string, method = "GET"): Promise<string> => {
    const request = new Request(`http://w${path}`, { method });
    const handler = table(request);
    if (!handler) return "none";
    return await ((await handler(request, undefined)) as Response).text();
  };
}

const tell = (name: string) => (request: Request & { params?: unknown }) =>
  new Response(`${name} ${JSON.stringify(request.params)}`);

const routes = {
  "/": tell("root"),
  "/a": tell("a"),
  "/a/:id": tell("param"),
  "/a/me": tell("exact"),
  "/a/:id/b/:n": tell("two"),
  "/w/*": tell("wild"),
  "/w/deep/*": tell("deeper"),
  "/fixed": new Response("fixed"),
  "/off": false,
  "/methods": { GET: tell("get"), POST: new Response("posted") },
};

describe("compileRoutes() gives a request to", () => {
  const cases: [path: string, answer: string, method?: string][] = [
    ["/", "root {}"],
    ["/a", "a {}"],
    ["/a?x=1", "a {}"],
    ["/a/7", 'param {"id":"7"}'],
    ["/a/x%20y", 'param {"id":"x y"}'],
    ["/a/%zz", 'param {"id":"%zz"}'],
    ["/a/me", "exact {}"],
    ["/a/1/b/2", 'two {"id":"1","n":"2"}'],
    ["/a/", "none"],
    ["/a/1/b", "none"],
    ["/w/x/y", "wild {}"],
    ["/w/deep/y", "deeper {}"],
    ["/fixed", "fixed"],
    ["/off", "none"],
    ["/methods", "get {}"],
    ["/methods", "posted", "POST"],
    ["/methods", "none", "PUT"],
    ["/nowhere", "none"],
  ];
  const ask = asker(routes);
  for (const [path, answer, method] of cases) {
    test(`${method ?? "GET"} ${path}: ${answer}`, async () => {
      expect(await ask(path, method)).toBe(answer);
    });
  }

  test("a fixed response as often as it is asked for", async () => {
    expect([await ask("/fixed"), await ask("/fixed")]).toEqual(["fixed", "fixed"]);
  });

  test("the same handler as Bun's own server", async () => {
    await using server = {
      bun: Bun.serve({
        port: 0,
        routes: routes as unknown as Record<string, Response>,
        fetch: () => new Response("none"),
      }),
      [Symbol.asyncDispose]: async () => server.bun.stop(true),
    };
    for (const [path, , method = "GET"] of cases) {
      if (path === "/a/%zz") continue; // fetch() would not send it
      const answer = await fetch(new URL(path, server.bun.url), { method });
      expect({ path, method, text: await answer.text() }).toEqual({
        path,
        method,
        text: await ask(path, method),
      });
    }
  });
});
