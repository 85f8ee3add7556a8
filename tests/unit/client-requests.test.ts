import { describe, expect, test } from "bun:test";
import { FlurryError } from "../../errors/errors.ts";
import { retryAfter } from "../../runtime/client/gateway-error.ts";
import { type ClientOptions, FlurryClient, GatewayError } from "../../runtime/client/mod.ts";
import {
  type Answer,
  SAMPLE_ID,
  ScriptedServer,
  sampleJob,
  sendJson,
  sendProblem,
} from "../support/client-server.ts";

const job = { worker: { image: "base", command: ["true"] }, tasks: { count: 3 } };

/** A client of a scripted server. */
async function connect(answer: Answer, options: Partial<ClientOptions> = {}) {
  const server = await ScriptedServer.start(answer);
  const client = new FlurryClient({ url: server.url, ...options });
  return { server, client, [Symbol.asyncDispose]: () => server[Symbol.asyncDispose]() };
}

async function errorOf(promise: Promise<unknown>): Promise<FlurryError> {
  const error = await promise.then(
    () => undefined,
    (reason: unknown) => reason,
  );
  if (!(error instanceof FlurryError)) throw new Error(`Expected a FlurryError, got ${error}`);
  return error;
}

describe("a problem", () => {
  test("becomes an error with its code, text, hint, status and request id", async () => {
    await using peer = await connect((response) =>
      sendProblem(response, 404, "JOB_NOT_FOUND", { hint: "look with ls" }),
    );
    const error = await errorOf(peer.client.jobs.get(SAMPLE_ID));
    expect(error).toBeInstanceOf(GatewayError);
    expect(error).toMatchObject({
      code: "JOB_NOT_FOUND",
      message: "It is JOB_NOT_FOUND",
      hint: "look with ls",
      status: 404,
      requestId: "req-1",
      retryable: false,
    });
    expect(peer.server.seen.length).toBe(1);
  });

  test("shows the places of a body that are wrong, each once", async () => {
    await using peer = await connect((response) =>
      sendProblem(response, 400, "BAD_ARGUMENT", {
        detail: "The body is not valid: body.name: is too long, and 1 more",
        errors: [
          { path: "body.name", message: "is too long" },
          { path: "body.priority", message: "must be a number" },
        ],
      }),
    );
    const { message } = await errorOf(peer.client.jobs.validate(job));
    expect(message).toBe(
      "The body is not valid: body.name: is too long, and 1 more (body.priority: must be a number)",
    );
  });

  test("with a code that this client does not know is GATEWAY_FAILED", async () => {
    await using peer = await connect((response) => sendProblem(response, 418, "TEAPOT"));
    const error = await errorOf(peer.client.jobs.get(SAMPLE_ID));
    expect(error.code).toBe("GATEWAY_FAILED");
    expect(error.message).toBe('The gateway answered 418 with the unknown code "TEAPOT": It is TEAPOT');
  });
});

describe("an answer that is no gateway's", () => {
  test.each([
    [200, "<html>Welcome</html>"],
    [200, '{"id":"job_1"}'],
    [502, "Bad gateway"],
    [302, ""],
  ])("(%d, %s) is GATEWAY_FAILED with its status and start", async (status, text) => {
    await using peer = await connect((response) => {
      response.writeHead(status, { location: "http://127.0.0.1:1/elsewhere" });
      response.end(text.repeat(500));
    });
    const error = await errorOf(peer.client.jobs.get(SAMPLE_ID));
    expect(error.code).toBe("GATEWAY_FAILED");
    expect(error.message).toContain(String(status));
    expect(error.message).toContain(JSON.stringify(text.slice(0, 8)).slice(1, -1));
    expect(error.message.length).toBeLessThan(600);
    expect(peer.server.seen.length).toBe(1);
  });

  test("is not read to its end when it is endless", async () => {
    let closed: Promise<void> | undefined;
    await using peer = await connect((response) => {
      closed = new Promise((resolve) => response.once("close", resolve));
      response.writeHead(500);
      const more = () => {
        while (!response.destroyed && response.write("x".repeat(65_536)));
      };
      response.on("drain", more);
      more();
    });
    const error = await errorOf(peer.client.jobs.get(SAMPLE_ID));
    expect(error.code).toBe("GATEWAY_FAILED");
    await closed;
  });
});

describe("a request", () => {
  test("carries the key, and asks where the URL says", async () => {
    const server = await ScriptedServer.start((response) => sendJson(response, sampleJob()));
    await using _server = server;
    const client = new FlurryClient({ url: `${server.url}/behind/a/proxy/`, key: "flk_a_b" });
    expect(client.url).toBe(`${server.url}/behind/a/proxy`);
    expect((await client.jobs.get(SAMPLE_ID)).state).toBe("running");
    expect(server.seen[0]).toMatchObject({ method: "GET", path: `/behind/a/proxy/v1/jobs/${SAMPLE_ID}` });
    expect(server.seen[0]?.headers.authorization).toBe("Bearer flk_a_b");
  });

  test("to a gateway that is busy is sent again after the time that it asks for", async () => {
    const at: number[] = [];
    await using peer = await connect((response, _request, n) => {
      at.push(performance.now());
      if (n < 2) sendProblem(response, n === 0 ? 429 : 503, "QUEUE_FULL", {}, { "retry-after": "1" });
      else sendJson(response, sampleJob());
    });
    await peer.client.jobs.get(SAMPLE_ID);
    expect(at.length).toBe(3);
    expect(at[1]! - at[0]!).toBeGreaterThan(990);
  });

  test("is given up after some tries, with the last reason", async () => {
    await using peer = await connect((response) => sendProblem(response, 503, "SHUTTING_DOWN"), {
      retries: 2,
    });
    expect((await errorOf(peer.client.jobs.get(SAMPLE_ID))).code).toBe("SHUTTING_DOWN");
    expect(peer.server.seen.length).toBe(3);
  }, 30_000);

  test("is not sent again when the wait asked for is long", async () => {
    await using peer = await connect((response) =>
      sendProblem(response, 429, "LIMIT_REACHED", {}, { "retry-after": "3600" }),
    );
    const error = await errorOf(peer.client.jobs.get(SAMPLE_ID));
    expect(error).toMatchObject({ code: "LIMIT_REACHED", retryAfterMs: 3_600_000, retryable: true });
    expect(peer.server.seen.length).toBe(1);
  });

  test("whose connection is lost is sent again: a submission under the same idempotency key", async () => {
    await using peer = await connect((response, _request, n) => {
      if (n === 0) response.destroy();
      else sendJson(response, sampleJob(), 202, { "idempotent-replayed": "true" });
    });
    const { job: accepted, replayed } = await peer.client.jobs.submit(job);
    expect(accepted.id).toBe(SAMPLE_ID);
    expect(replayed).toBe(true);
    const keys = peer.server.seen.map(({ headers }) => headers["idempotency-key"]);
    expect(keys.length).toBe(2);
    expect(keys[0]).toMatch(/^[0-9a-f-]{36}$/);
    expect(keys[1]).toBe(keys[0]);
  });

  test("that may have changed something is not sent again", async () => {
    await using peer = await connect((response) => response.destroy() as unknown as undefined);
    expect((await errorOf(peer.client.jobs.retry(SAMPLE_ID))).code).toBe("GATEWAY_UNREACHABLE");
    expect((await errorOf(peer.client.jobs.remove(SAMPLE_ID))).code).toBe("GATEWAY_UNREACHABLE");
    expect(peer.server.seen.length).toBe(2);
  });

  test("to where nobody listens says where, and what to do", async () => {
    const server = await ScriptedServer.start((response) => sendJson(response, {}));
    const { url } = server;
    await server[Symbol.asyncDispose]();
    const error = await errorOf(new FlurryClient({ url, retries: 1 }).jobs.get(SAMPLE_ID));
    expect(error.code).toBe("GATEWAY_UNREACHABLE");
    expect(error.message).toBe(`Cannot reach the gateway at ${url}: nobody listens there`);
    expect(error.hint).toContain("flurry serve");
  }, 30_000);

  test("ends with ABORTED when its signal or the client's does, also while it waits to be sent again", async () => {
    for (const whose of ["client", "call"]) {
      const controller = new AbortController();
      await using peer = await connect(
        (response) => {
          sendProblem(response, 429, "QUEUE_FULL", {}, { "retry-after": "50" });
          setTimeout(() => controller.abort(), 50);
        },
        whose === "client" ? { signal: controller.signal } : {},
      );
      const options = whose === "call" ? { signal: controller.signal } : {};
      expect((await errorOf(peer.client.jobs.get(SAMPLE_ID, options))).code).toBe("ABORTED");
    }
  });

  test.each(["", "ftp://a", "127.0.0.1:8787", "http://user:pw@host", "http://host/?a=1"])(
    "to the URL %p is refused",
    (url) => {
      expect(() => new FlurryClient({ url })).toThrow(FlurryError);
    },
  );
});

describe("a list", () => {
  test("is fetched page by page, only as far as it is read", async () => {
    await using peer = await connect((response, { path }) => {
      const cursor = Number(new URL(path, "http://x").searchParams.get("cursor") ?? 0);
      sendJson(response, { items: [sampleJob({ name: `job ${cursor}` })], next: String(cursor + 1) });
    });
    const names: unknown[] = [];
    for await (const { name } of peer.client.jobs.list({ state: "running", tag: "a b", pageSize: 1 })) {
      names.push(name);
      if (names.length === 3) break;
    }
    expect(names).toEqual(["job 0", "job 1", "job 2"]);
    expect(peer.server.seen.map(({ path }) => path)).toEqual([
      "/v1/jobs?state=running&tag=a+b&limit=1",
      "/v1/jobs?state=running&tag=a+b&limit=1&cursor=1",
      "/v1/jobs?state=running&tag=a+b&limit=1&cursor=2",
    ]);
  });

  test("that does not go on is no endless one", async () => {
    await using peer = await connect((response) => sendJson(response, { items: [], next: "same" }));
    const read = async () => {
      for await (const _job of peer.client.jobs.list());
    };
    expect((await errorOf(read())).code).toBe("GATEWAY_FAILED");
  });
});

test("Retry-After is read as seconds or as a date", () => {
  const now = Date.parse("2026-01-31T12:00:00Z");
  expect(retryAfter("7")).toBe(7000);
  expect(retryAfter("Sat, 31 Jan 2026 12:00:09 GMT", now)).toBe(9000);
  expect(retryAfter("Sat, 31 Jan 2026 11:00:00 GMT", now)).toBe(0);
  expect(retryAfter("soon")).toBeUndefined();
  expect(retryAfter(null)).toBeUndefined();
});
