import { describe, expect, test } from "bun:test";
import { FlurryError } from "../../errors/errors.ts";
import type { WorkerLogRecord } from "../../runtime/api/mod.ts";
import type { GatewayRuntime } from "../../runtime/gateway/context.ts";
import type { ServedVersion, ServeOptions } from "../../runtime/workers/js/js-services.ts";
import { noFigures } from "../../runtime/workers/js/request-figures.ts";
import { WorkerLogs } from "../../runtime/workers/js/worker-logs.ts";
import { GatewaySandbox, idleRuntime, problemFrom } from "../support/gateway-sandbox.ts";

interface Asked {
  worker: ServedVersion;
  options: ServeOptions;
}

type Script = (request: Request, asked: Asked) => Response | Promise<Response>;

/** A runtime whose workers answer as the test says. */
function answering(script: Script) {
  const asked: Asked[] = [];
  const removed: string[] = [];
  const logs = new WorkerLogs();
  const runtime: GatewayRuntime = {
    ...idleRuntime(),
    requests: {
      handle: async (worker, request, options) => {
        asked.push({ worker, options });
        return await script(request, { worker, options });
      },
      scheduled: () => Promise.reject(new Error("This runtime calls no scheduled()")),
      remove: (name) => void removed.push(name),
      figures: noFigures,
      logs,
    },
  };
  return { asked, removed, logs, runtime: () => runtime };
}

const module = { code: "export default { fetch: () => new Response('hello') }" };

async function deploy(gateway: GatewaySandbox, name: string, more: object = {}, key?: string): Promise<void> {
  const init = { method: "PUT", json: { module, ...more }, key };
  await gateway.json(`/v1/workers/${name}`, init, 201);
}

describe("requests to workers", () => {
  test("come with the path below the worker's, its query and its body, and answers go as they are", async () => {
    const { asked, runtime } = answering(async (request, { options }) => {
      const headers = new Headers({ etag: '"1"' });
      headers.append("set-cookie", "a=1");
      headers.append("set-cookie", "b=2");
      return new Response(`${request.method} ${new URL(options.url!).pathname} ${await request.text()}`, {
        status: 203,
        headers,
      });
    });
    await using gateway = await GatewaySandbox.open({ runtime });
    await deploy(gateway, "shop");
    const answer = await gateway.fetch("/w/shop/cart/7?x=%20y", { method: "POST", body: "two" });
    expect(answer.status).toBe(203);
    expect(await answer.text()).toBe("POST /cart/7 two");
    expect(answer.headers.getSetCookie()).toEqual(["a=1", "b=2"]);
    expect(answer.headers.get("etag")).toBe('"1"');
    expect(answer.headers.get("cache-control")).toBeNull();
    expect(answer.headers.get("x-frame-options")).toBeNull();
    expect(answer.headers.get("x-request-id")).toBeTruthy();
    // A page of a worker is not to speak for who looks at it to the gateway, whose origin it has.
    expect(answer.headers.get("content-security-policy")).toStartWith("sandbox ");
    expect(asked[0]!.options.url).toBe(`${gateway.url}/cart/7?x=%20y`);
    expect(asked[0]!.worker).toMatchObject({ name: "shop", version: 1 });
  });

  test("without a slash behind the name are sent to where relative links lead below it", async () => {
    const { asked, runtime } = answering(() => new Response("no"));
    await using gateway = await GatewaySandbox.open({ runtime });
    await deploy(gateway, "shop");
    const answer = await gateway.fetch("/w/shop?a=1", { redirect: "manual" });
    expect([answer.status, answer.headers.get("location")]).toEqual([308, "/w/shop/?a=1"]);
    expect(asked).toEqual([]);
  });

  test("also go by host names: NAME.localhost, and those that the worker has", async () => {
    const { runtime } = answering((_, { worker, options }) => {
      return new Response(`${worker.name} ${new URL(options.url!).pathname}`);
    });
    await using gateway = await GatewaySandbox.open({ runtime });
    await deploy(gateway, "shop", { http: { hosts: ["shop.example.com"] } });
    const byHost = (host: string, path = "/a/b") => gateway.fetch(path, { headers: { host } });
    for (const host of [`shop.localhost:${gateway.port}`, "shop.example.com", "SHOP.example.com:80"]) {
      const answer = await byHost(host);
      expect(await answer.text()).toBe("shop /a/b");
      expect(answer.headers.get("content-security-policy")).toBeNull();
    }
    expect((await problemFrom(await byHost("other.localhost"))).code).toBe("WORKER_NOT_FOUND");
    expect((await problemFrom(await byHost("other.example.com", "/v1/jobs"))).code).toBe("FORBIDDEN");
    const taken = await gateway.problem("/v1/workers/other", {
      method: "PUT",
      json: { module, http: { hosts: ["shop.example.com"] } },
    });
    expect(taken).toMatchObject({ status: 400, code: "BAD_ARGUMENT" });
    await gateway.fetch("/v1/workers/shop", { method: "DELETE" });
    expect((await problemFrom(await byHost("shop.example.com"))).code).toBe("FORBIDDEN");
  });

  test("fail with problems that say whose fault it is, and never with what the store or a file is called", async () => {
    const failures: [FlurryError | Error, number, string][] = [
      [new FlurryError("CHILD_DIED", "vm-1 died"), 502, "CHILD_DIED"],
      [new FlurryError("FORK_FAILED", "Cannot fork"), 502, "FORK_FAILED"],
      [new FlurryError("WORKER_LOAD_FAILED", "It throws"), 502, "WORKER_LOAD_FAILED"],
      [new FlurryError("WORKER_TIMEOUT", "No answer"), 504, "WORKER_TIMEOUT"],
      [new FlurryError("QUEUE_FULL", "Too many", { retryAfterSeconds: 3 }), 503, "QUEUE_FULL"],
      [new FlurryError("NOT_READY", "Forks keep failing", { retryAfterSeconds: 3 }), 503, "NOT_READY"],
      [new FlurryError("SHUTTING_DOWN", "It ends"), 503, "SHUTTING_DOWN"],
      [new Error("/secret/path"), 502, "INTERNAL"],
    ];
    let next: Error | undefined;
    const { runtime } = answering(() => Promise.reject(next));
    await using gateway = await GatewaySandbox.open({ runtime });
    await deploy(gateway, "shop");
    for (const [error, status, code] of failures) {
      next = error;
      const answer = await gateway.fetch("/w/shop/");
      if (code === "QUEUE_FULL" || code === "NOT_READY") expect(answer.headers.get("retry-after")).toBe("3");
      const problem = await problemFrom(answer);
      expect(problem).toMatchObject({ status, code });
      expect(problem.detail).not.toContain("/secret");
    }
  });

  test("to no worker, to one with a command, and for another protocol are refused", async () => {
    const { asked, removed, runtime } = answering(() => new Response("no"));
    await using gateway = await GatewaySandbox.open({ runtime });
    await deploy(gateway, "shop");
    await gateway.json(
      "/v1/workers/task",
      { method: "PUT", json: { image: "base", command: ["true"] } },
      201,
    );
    for (const path of ["/w/none/", "/w/task/", "/w/NO!/"]) {
      expect(await gateway.problem(path)).toMatchObject({ status: 404, code: "WORKER_NOT_FOUND" });
    }
    const headers = { upgrade: "websocket", connection: "Upgrade" };
    expect(await gateway.problem("/w/shop/", { headers })).toMatchObject({
      status: 501,
      code: "UPGRADE_UNSUPPORTED",
    });
    expect(asked).toEqual([]);
    await gateway.fetch("/v1/workers/shop", { method: "DELETE" });
    expect(removed).toEqual(["shop"]);
    expect((await gateway.problem("/w/shop/")).code).toBe("WORKER_NOT_FOUND");
  });

  test("need no key unless the worker wants one", async () => {
    const { runtime } = answering((request) => new Response(request.headers.get("authorization")));
    await using gateway = await GatewaySandbox.open({ runtime });
    const { key } = await gateway.key(["admin"]);
    const reader = await gateway.key(["read"]);
    await deploy(gateway, "open", {}, key);
    await deploy(gateway, "shut", { http: { access: "key" } }, key);
    // That header is the worker's, where the gateway asks for none.
    const own = await gateway.fetch("/w/open/", { headers: { authorization: "Basic eDp5" } });
    expect(await own.text()).toBe("Basic eDp5");
    expect(await gateway.problem("/w/shut/")).toMatchObject({ status: 401, code: "UNAUTHENTICATED" });
    const unscoped = await gateway.problem("/w/shut/", { key: reader.key });
    expect(unscoped).toMatchObject({ status: 403, code: "FORBIDDEN" });
    expect((await gateway.fetch("/w/shut/", { key })).status).toBe(200);
  });

  test("have a session by cookie, which is given to who has none, or by a header", async () => {
    const { asked, runtime } = answering(() => new Response("ok"));
    await using gateway = await GatewaySandbox.open({ runtime });
    await deploy(gateway, "cart", { http: { isolation: { mode: "session" } } });
    await deploy(gateway, "room", { http: { isolation: { mode: "session", header: "x-room" } } });
    const first = await gateway.fetch("/w/cart/");
    const [cookie = ""] = first.headers.getSetCookie();
    const [, session] =
      /^flurry-session=([\w-]{24}); Path=\/w\/cart\/; HttpOnly; SameSite=Lax$/.exec(cookie) ?? [];
    expect(session).toBeDefined();
    const again = await gateway.fetch("/w/cart/", { headers: { cookie: `flurry-session=${session}` } });
    expect(again.headers.getSetCookie()).toEqual([]);
    await gateway.fetch("/w/room/", { headers: { "x-room": "7" } });
    expect(asked.map(({ options }) => options.session)).toEqual([session, session, "7"]);
    expect(await gateway.problem("/w/room/")).toMatchObject({ status: 400, code: "BAD_ARGUMENT" });
  });

  test("find the secrets of the worker when it is forked, but none that is for some keys alone", async () => {
    const { asked, runtime } = answering(() => new Response("ok"));
    await using gateway = await GatewaySandbox.open({ runtime });
    await gateway.json("/v1/secrets/token", { method: "PUT", json: { value: "hush" } }, 200);
    await deploy(gateway, "shop", { secrets: { TOKEN: "token" } });
    await deploy(gateway, "lost", { secrets: { TOKEN: "nothing" } });
    await gateway.fetch("/w/shop/");
    await gateway.fetch("/w/lost/");
    expect(await asked[0]!.worker.secrets()).toEqual({ TOKEN: "hush" });
    await expect(asked[1]!.worker.secrets()).rejects.toMatchObject({ code: "SECRET_NOT_FOUND" });
  });
});

describe("the version that answers", () => {
  test("is the current one at each moment, and read from the store once only", async () => {
    const { runtime } = answering((_, { worker }) => new Response(String(worker.version)));
    await using gateway = await GatewaySandbox.open({ runtime });
    const { workers } = gateway.context.store;
    const get = workers.get.bind(workers);
    let reads = 0;
    workers.get = (...query) => {
      reads += 1;
      return get(...query);
    };
    await deploy(gateway, "shop");
    const ask = async () => await (await gateway.fetch("/w/shop/")).text();
    expect([await ask(), await ask(), await ask(), reads]).toEqual(["1", "1", "1", 1]);
    await deploy(gateway, "shop", { env: { A: "1" } });
    expect(await ask()).toBe("2");
    await gateway.json("/v1/workers/shop/current", { method: "PUT", json: { version: 1 } });
    expect(await ask()).toBe("1");
    expect(reads).toBe(3);
  });
});

describe("GET /v1/workers/{name}/logs", () => {
  test("gives what a worker has printed, and waits for more", async () => {
    const { logs, runtime } = answering(() => new Response("ok"));
    await using gateway = await GatewaySandbox.open({ runtime });
    await deploy(gateway, "shop");
    const read = async (query = "") => {
      const { items } = await gateway.json<{ items: WorkerLogRecord[] }>(`/v1/workers/shop/logs${query}`);
      return items;
    };
    const { onLog, onFault } = logs.of("shop");
    const entry = {
      stream: "stdout" as const,
      level: "info" as const,
      time: 0,
      requestId: "r-1",
      dropped: 0,
    };
    expect(await read()).toEqual([]);
    onLog!("vm-1", { ...entry, text: "one" });
    const [one] = await read();
    expect(one).toMatchObject({ vm: "vm-1", level: "info", text: "one", requestId: "r-1" });
    const waiting = read(`?after=${one!.id}&waitMs=30000`);
    logs.of("other").onLog!("vm-2", { ...entry, text: "not of it" });
    onFault!("vm-1", {
      kind: "exit",
      message: "it left",
      stack: undefined,
      exitCode: 1,
      requestId: undefined,
      time: 0,
    });
    expect((await waiting).map(({ level, text }) => [level, text])).toEqual([["error", "it left"]]);
    expect(await gateway.problem("/v1/workers/none/logs")).toMatchObject({ code: "WORKER_NOT_FOUND" });
  });

  test("keeps the last 1000 records, and 512 Ki characters", async () => {
    const logs = new WorkerLogs();
    const { onLog } = logs.of("shop");
    const entry = {
      stream: "stdout" as const,
      level: "info" as const,
      time: 0,
      requestId: undefined,
      dropped: 0,
    };
    for (let count = 1; count <= 1500; count += 1) onLog!("vm", { ...entry, text: String(count) });
    expect(logs.read("shop", 0).map(({ text }) => text)).toEqual(
      Array.from({ length: 1000 }, (_, index) => String(index + 501)),
    );
    for (let count = 0; count < 100; count += 1) onLog!("vm", { ...entry, text: "x".repeat(8192) });
    expect(logs.read("shop", 0).length).toBe(64);
  });
});

describe("PUT /v1/workers/{name} with a module", () => {
  test("refuses what belongs to commands, and what is neither", async () => {
    await using gateway = await GatewaySandbox.open();
    const bad: [string, object][] = [
      ["command", { module, command: ["true"] }],
      ["image", { module, image: "base" }],
      ["http", { image: "base", command: ["true"], http: {} }],
      ["allow", { image: "base", command: ["true"], allow: ["a:1"] }],
      ["allow", { module, allow: ["nowhere"] }],
      ["command", { image: "base" }],
      ["http.isolation", { module, http: { isolation: { mode: "none" } } }],
    ];
    for (const [path, json] of bad) {
      const problem = await gateway.problem("/v1/workers/shop", { method: "PUT", json });
      expect(problem).toMatchObject({ status: 400, code: "BAD_ARGUMENT" });
      expect(problem.errors!.map((each) => each.path).join()).toContain(`body.${path}`);
    }
    expect(await gateway.json("/v1/workers")).toMatchObject({ items: [] });
  });

  test("keeps the code out of lists", async () => {
    await using gateway = await GatewaySandbox.open();
    await deploy(gateway, "shop");
    const { items } = await gateway.json<{ items: { spec: object }[] }>("/v1/workers");
    expect(items[0]!.spec).toMatchObject({ module: { code: "" } });
    expect(await gateway.json("/v1/workers/shop")).toMatchObject({ spec: { module } });
  });
});
