import { describe, expect, test } from "bun:test";
import type { ServerResponse } from "node:http";
import { FlurryClient } from "../../runtime/client/mod.ts";
import {
  type Answer,
  SAMPLE_ID,
  ScriptedServer,
  sampleJob,
  sendJson,
  sendProblem,
} from "../support/client-server.ts";

const at = "2026-01-31T12:00:00.000Z";

async function connect(answer: Answer, silenceMs?: number) {
  const server = await ScriptedServer.start(answer);
  const client = new FlurryClient({ url: server.url, retries: 0, silenceMs });
  return { server, client, [Symbol.asyncDispose]: () => server[Symbol.asyncDispose]() };
}

function sendEvents(response: ServerResponse, ids: readonly number[], last = "task.running"): void {
  response.writeHead(200, { "content-type": "text/event-stream" });
  response.write(": hello\n\n");
  for (const id of ids) {
    const type = id === 5 ? "job.succeeded" : last;
    response.write(`id: ${id}\nevent: ${type}\ndata: ${JSON.stringify({ id, at, type, reason: "so" })}\n\n`);
  }
}

async function collect<T>(items: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const item of items) all.push(item);
  return all;
}

describe("jobs.events()", () => {
  test("takes a stream that breaks up again after the last event, and repeats none", async () => {
    await using peer = await connect((response, { headers }, n) => {
      if (n === 0) {
        sendEvents(response, [1, 2]);
        // The third is cut off in the middle.
        response.write('id: 3\ndata: {"id":3,');
        setTimeout(() => response.destroy(), 20);
        return;
      }
      if (n === 1) return sendProblem(response, 503, "SHUTTING_DOWN");
      expect(headers["last-event-id"]).toBe("2");
      // A gateway that repeats one all the same.
      sendEvents(response, [2, 3, 4, 5]);
      response.end();
    });
    const events = await collect(peer.client.jobs.events(SAMPLE_ID));
    expect(events.map(({ id }) => id)).toEqual([1, 2, 3, 4, 5]);
    expect(peer.server.seen.map(({ headers }) => headers["last-event-id"])).toEqual([undefined, "2", "2"]);
  });

  test("takes a stream that has gone silent for lost", async () => {
    await using peer = await connect((response, _request, n) => {
      sendEvents(response, n === 0 ? [1] : [2, 5]);
      if (n > 0) response.end();
    }, 100);
    const events = await collect(peer.client.jobs.events(SAMPLE_ID));
    expect(events.map(({ id }) => id)).toEqual([1, 2, 5]);
  });

  test("goes on after a stream that ends before the job has ended", async () => {
    await using peer = await connect((response, { path }, n) => {
      if (!path.includes("/events")) return sendJson(response, sampleJob());
      sendEvents(response, n === 0 ? [1, 2] : [3, 4, 5]);
      response.end();
    });
    const events = await collect(peer.client.jobs.events(SAMPLE_ID));
    expect(events.map(({ id }) => id)).toEqual([1, 2, 3, 4, 5]);
  });

  test("begins after the event that is named, and ends when the job has ended without more", async () => {
    await using peer = await connect((response, { path }) => {
      if (!path.includes("/events")) return sendJson(response, sampleJob({ state: "failed" }));
      sendEvents(response, []);
      response.end();
    });
    expect(await collect(peer.client.jobs.events(SAMPLE_ID, { after: 5 }))).toEqual([]);
    expect(peer.server.seen[0]?.headers["last-event-id"]).toBe("5");
  });

  test("ends with the gateway's error when the job is gone", async () => {
    await using peer = await connect((response) => sendProblem(response, 404, "JOB_NOT_FOUND"));
    await expect(collect(peer.client.jobs.events(SAMPLE_ID))).rejects.toMatchObject({
      code: "JOB_NOT_FOUND",
    });
  });

  test("refuses an event that is none", async () => {
    await using peer = await connect((response) => {
      response.writeHead(200, { "content-type": "text/event-stream" });
      response.end('data: {"id":"one"}\n\n');
    });
    await expect(collect(peer.client.jobs.events(SAMPLE_ID))).rejects.toMatchObject({
      code: "GATEWAY_FAILED",
      message: expect.stringContaining('{\\"id\\":\\"one\\"}'),
    });
  });

  test("refuses an answer that is no event stream, in place of waiting for events in it", async () => {
    await using peer = await connect((response) => sendJson(response, sampleJob()));
    await expect(collect(peer.client.jobs.events(SAMPLE_ID))).rejects.toMatchObject({
      code: "GATEWAY_FAILED",
    });
  });

  test("closes its connection when the reader stops, and when it is aborted", async () => {
    for (const how of ["break", "abort"]) {
      const controller = new AbortController();
      let closed: Promise<void> | undefined;
      await using peer = await connect((response) => {
        closed = new Promise((resolve) => response.once("close", resolve));
        sendEvents(response, [1]);
      });
      const read = async () => {
        for await (const _event of peer.client.jobs.events(SAMPLE_ID, { signal: controller.signal })) {
          if (how === "break") break;
          controller.abort();
        }
      };
      if (how === "break") await read();
      else await expect(read()).rejects.toMatchObject({ code: "ABORTED" });
      await closed;
    }
  });
});

describe("jobs.results() and jobs.logs()", () => {
  const result = (index: number) => ({
    index,
    state: "succeeded",
    attempt: 1,
    exitCode: 0,
    stdout: `task ${index}\n`,
    stdoutTruncated: false,
    artifacts: 0,
    // With gaps, as a task that was tried again leaves.
    ended: [20, 30, 10][index],
    endedAt: at,
  });
  const chunk = (id: number) => ({ id, at, task: 0, attempt: 1, stream: "stdout", text: `${id}\n` });
  const send = (response: ServerResponse, items: readonly object[]) => {
    response.writeHead(200, { "content-type": "application/x-ndjson" });
    for (const item of items) response.write(`${JSON.stringify(item)}\n`);
  };

  test("give each result once, over a connection that breaks inside of a line", async () => {
    let streams = 0;
    await using peer = await connect((response, { path }) => {
      if (!path.includes("/results")) return sendJson(response, sampleJob());
      streams += 1;
      if (streams === 1) {
        send(response, [result(2)]);
        response.write('{"index":0,"sta');
        setTimeout(() => response.destroy(), 20);
      } else {
        send(response, [result(0), result(1)]);
        response.end();
      }
    });
    const options = { order: "completion" as const, follow: true };
    const results = await collect(peer.client.jobs.results(SAMPLE_ID, options));
    expect(results.map(({ index }) => index)).toEqual([2, 0, 1]);
    const query = new URL(peer.server.seen.at(-1)!.path, "http://x").searchParams;
    expect(Object.fromEntries(query)).toEqual({ order: "completion", follow: "true", after: "10" });
  });

  test("give what there is without `follow`", async () => {
    await using peer = await connect((response, { path }) => {
      if (!path.includes("/results")) return sendJson(response, sampleJob());
      send(response, [result(0)]);
      response.end();
    });
    expect((await collect(peer.client.jobs.results(SAMPLE_ID))).length).toBe(1);
    expect(peer.server.seen.length).toBe(2);
  });

  test("follow a log to the end of its job, through a stream that is cut", async () => {
    let streams = 0;
    let state = "running";
    await using peer = await connect((response, { path }) => {
      const url = new URL(path, "http://x");
      if (!url.pathname.endsWith("/logs")) return sendJson(response, sampleJob({ state }));
      streams += 1;
      const after = Number(url.searchParams.get("after"));
      if (streams === 2) state = "succeeded";
      const upTo = streams === 1 ? 2 : 4;
      send(
        response,
        [1, 2, 3, 4].filter((id) => id > after && id <= upTo).map((id) => chunk(id)),
      );
      response.end("\n");
    });
    const chunks = await collect(peer.client.jobs.logs(SAMPLE_ID, { follow: true, task: 0 }));
    expect(chunks.map(({ id }) => id)).toEqual([1, 2, 3, 4]);
  });
});

describe("jobs.submitStream()", () => {
  test("sends the head and one line for each input, taken as they are read", async () => {
    await using peer = await connect((response) => sendJson(response, sampleJob(), 202));
    async function* inputs() {
      for (let n = 0; n < 3; n++) yield await Promise.resolve({ n, text: "a\nb" });
    }
    const head = { worker: "render@2" };
    const { job } = await peer.client.jobs.submitStream(head, inputs(), { idempotencyKey: "mine" });
    expect(job.id).toBe(SAMPLE_ID);
    const [request] = peer.server.seen;
    expect(request?.headers["content-type"]).toBe("application/x-ndjson");
    expect(request?.headers["idempotency-key"]).toBe("mine");
    expect(request?.body).toBe(
      '{"worker":"render@2"}\n{"n":0,"text":"a\\nb"}\n{"n":1,"text":"a\\nb"}\n{"n":2,"text":"a\\nb"}\n',
    );
  });

  test("takes no more inputs than the gateway reads", async () => {
    const { createServer } = await import("node:http");
    let taken = 0;
    let stopped = false;
    function* inputs() {
      try {
        for (;;) {
          taken += 1;
          yield "x".repeat(1000);
        }
      } finally {
        stopped = true;
      }
    }
    // It reads nothing: what is taken is what fits into the sockets on the way.
    const server = createServer((request) => request.pause());
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    const { port } = server.address() as { port: number };
    const controller = new AbortController();
    const client = new FlurryClient({ url: `http://127.0.0.1:${port}`, signal: controller.signal });
    const submitting = client.jobs.submitStream({ worker: "render" }, inputs());
    let before = -1;
    while (before !== taken || taken < 100) {
      before = taken;
      await new Promise((resolve) => setTimeout(resolve, 200));
    }
    expect(taken).toBeLessThan(50_000);
    controller.abort();
    await expect(submitting).rejects.toMatchObject({ code: "ABORTED" });
    server.closeAllConnections();
    server.close();
    while (!stopped) await new Promise((resolve) => setTimeout(resolve, 10));
  });

  test("fails with what its inputs fail with", async () => {
    await using peer = await connect((response) => sendJson(response, sampleJob(), 202));
    function* inputs() {
      yield 1;
      throw new RangeError("no more of them");
    }
    await expect(peer.client.jobs.submitStream({ worker: "render" }, inputs())).rejects.toThrow(
      "no more of them",
    );
    await expect(peer.client.jobs.submitStream({ worker: "render" }, [undefined])).rejects.toMatchObject({
      code: "BAD_ARGUMENT",
    });
  });
});

describe("jobs.artifact()", () => {
  test("gives the content as a stream, with size and ETag, or a part of it", async () => {
    await using peer = await connect((response, { headers }) => {
      if (headers.range === undefined) {
        response.writeHead(200, { "content-length": "5", etag: '"abc"' });
        return response.end("hello") as unknown as undefined;
      }
      response.writeHead(206, { "content-length": "2", "content-range": "bytes 1-2/5", etag: '"abc"' });
      response.end("el");
    });
    const whole = await peer.client.jobs.artifact(SAMPLE_ID, 7, "a dir/ä?.txt");
    expect({ size: whole.size, etag: whole.etag }).toEqual({ size: 5, etag: '"abc"' });
    expect(await new Response(whole.stream).text()).toBe("hello");
    const part = await peer.client.jobs.artifact(SAMPLE_ID, 7, "x", { range: { start: 1, end: 3 } });
    expect(part.size).toBe(5);
    expect(await new Response(part.stream).text()).toBe("el");
    expect(peer.server.seen[0]?.path).toBe(`/v1/jobs/${SAMPLE_ID}/artifacts/7/a%20dir/%C3%A4%3F.txt`);
    expect(peer.server.seen[1]?.headers.range).toBe("bytes=1-2");
  });

  test("fails when the content is cut off", async () => {
    await using peer = await connect((response) => {
      response.writeHead(200, { "content-length": "100", etag: '"abc"' });
      response.write("the first");
      setTimeout(() => response.destroy(), 20);
    });
    const { stream } = await peer.client.jobs.artifact(SAMPLE_ID, 0, "x");
    await expect(new Response(stream).text()).rejects.toMatchObject({ code: "GATEWAY_UNREACHABLE" });
  });

  test.each(["", "/etc/passwd", "../x", "a/../../x", "a//b", "."])("refuses the path %p", async (path) => {
    const client = new FlurryClient({ url: "http://127.0.0.1:1" });
    await expect(client.jobs.artifact(SAMPLE_ID, 0, path)).rejects.toMatchObject({ code: "BAD_ARGUMENT" });
  });
});
