import { describe, expect, test } from "bun:test";
import { connect } from "node:net";
import type { JobEvent, LogChunk, TaskResult } from "../../runtime/api/mod.ts";
import {
  eventually,
  GatewaySandbox,
  jobOf,
  linesOf,
  StreamReader,
  sseEvents,
} from "../support/gateway-sandbox.ts";

/** A job whose tasks have all ended. */
async function endedJob(gateway: GatewaySandbox, count: number): Promise<string> {
  const { id } = await gateway.submit(jobOf(count));
  for (let n = 0; n < count; n++) await gateway.finish(await gateway.claim(), { stdout: `out ${n}\n` });
  return id;
}

/** Streams of this kind that /metrics counts as open. */
async function openStreams(gateway: GatewaySandbox, kind: string): Promise<number> {
  const figures = await (await gateway.fetch("/metrics")).text();
  return Number(new RegExp(`^flurry_streams_open\\{kind="${kind}"\\} (\\d+)$`, "m").exec(figures)?.[1] ?? 0);
}

describe("GET /v1/jobs/{id}/events", () => {
  test("tells all that happens, and ends with the job", async () => {
    await using gateway = await GatewaySandbox.open();
    const { id } = await gateway.submit(jobOf(2));
    const response = await gateway.fetch(`/v1/jobs/${id}/events`);
    expect(response.headers.get("content-type")).toBe("text/event-stream");
    await using reader = new StreamReader(response);
    expect(await reader.until("\n\n")).toBe("retry: 1000\n\n");
    const first = (await reader.until("job.queued\n")) + (await reader.until("\n\n"));
    await gateway.finish(await gateway.claim());
    await gateway.finish(await gateway.claim());
    const events = sseEvents(first + (await reader.rest()));
    expect(events.map(({ event }) => event).sort()).toEqual(
      [
        "job.queued",
        "job.running",
        "job.succeeded",
        ...Array(2).fill("task.running"),
        ...Array(2).fill("task.succeeded"),
      ].sort(),
    );
    expect(events.at(-1)?.event).toBe("job.succeeded");
    for (const { id: sent, event, data } of events)
      expect([sent, event]).toEqual([String(data.id), data.type]);
  });

  test("goes on after any id without loss or repetition, cut anywhere", async () => {
    await using gateway = await GatewaySandbox.open();
    const id = await endedJob(gateway, 20);
    const all = sseEvents(await (await gateway.fetch(`/v1/jobs/${id}/events`)).text()).map(
      ({ data }) => data,
    );
    expect(all.length).toBe(43);
    const seen: JobEvent[] = [];
    for (let cut = 1; seen.length < all.length; cut = (cut * 7) % 11) {
      const headers = { "last-event-id": String(seen.at(-1)?.id ?? 0) };
      await using reader = new StreamReader(await gateway.fetch(`/v1/jobs/${id}/events`, { headers }));
      let text = "";
      for (let n = 0; n <= cut; n++) text += await reader.until("\n\n");
      seen.push(...sseEvents(text).map(({ data }) => data));
    }
    expect(seen).toEqual(all);
    const middle = all[17]!.id;
    const after = await (await gateway.fetch(`/v1/jobs/${id}/events?after=${middle}`)).text();
    expect(sseEvents(after).map(({ data }) => data)).toEqual(all.slice(18));
    // The header is what a browser sends when it connects again by the same address.
    const both = { headers: { "last-event-id": String(middle) } };
    expect(await (await gateway.fetch(`/v1/jobs/${id}/events?after=0`, both)).text()).toBe(after);
    for (const bad of ["x", "-1", "1.5", "9007199254740993"]) {
      const headers = { "last-event-id": bad };
      expect(await gateway.problem(`/v1/jobs/${id}/events`, { headers })).toMatchObject({ status: 400 });
    }
  });

  test("a job that is retried goes on for those who ask with the last id", async () => {
    await using gateway = await GatewaySandbox.open();
    const { id } = await gateway.submit(jobOf(1));
    await gateway.fetch(`/v1/jobs/${id}/cancel`, { method: "POST" });
    const before = sseEvents(await (await gateway.fetch(`/v1/jobs/${id}/events`)).text());
    expect(before.at(-1)?.event).toBe("job.canceled");
    await gateway.fetch(`/v1/jobs/${id}/retry`, { method: "POST" });
    const headers = { "last-event-id": before.at(-1)!.id };
    const following = gateway.fetch(`/v1/jobs/${id}/events`, { headers }).then((answer) => answer.text());
    await gateway.finish(await gateway.claim());
    const after = sseEvents(await following).map(({ event }) => event);
    expect(after).toContain("task.succeeded");
    expect(after.at(-1)).toBe("job.succeeded");
  });

  test("says something in every five seconds of silence", async () => {
    await using gateway = await GatewaySandbox.open();
    const { id } = await gateway.submit(jobOf(1));
    await using reader = new StreamReader(await gateway.fetch(`/v1/jobs/${id}/events`));
    await reader.until("job.queued");
    const began = performance.now();
    await reader.until("\n:\n\n");
    expect(performance.now() - began).toBeGreaterThan(4000);
  });

  test("readers that go away, read or unread, leave no listener behind", async () => {
    await using gateway = await GatewaySandbox.open();
    const listeners = gateway.countListeners();
    const { id } = await gateway.submit(jobOf(1));
    const paths = ["events", "results?follow=true", "logs?follow=true"];
    for (const path of paths) {
      const cutting = new AbortController();
      const { signal } = cutting;
      const answers = await Promise.all(
        Array.from({ length: 10 }, () => gateway.fetch(`/v1/jobs/${id}/${path}`, { signal })),
      );
      const reading = answers.map((answer) => answer.text().catch((error: Error) => error.name));
      await eventually(() => listeners.open >= 10);
      cutting.abort();
      expect(await Promise.all(reading)).toEqual(Array(10).fill("AbortError"));
      await eventually(() => listeners.open === 0);
      const head = await gateway.fetch(`/v1/jobs/${id}/${path}`, { method: "HEAD" });
      expect([head.status, await head.text()]).toEqual([200, ""]);
      expect(listeners.open).toBe(0);
    }
    expect(await openStreams(gateway, "events")).toBe(0);
    expect(await openStreams(gateway, "logs")).toBe(0);
  });

  test("a gateway that ends, ends its streams", async () => {
    await using gateway = await GatewaySandbox.open();
    const { id } = await gateway.submit(jobOf(1));
    await using reader = new StreamReader(await gateway.fetch(`/v1/jobs/${id}/events`));
    await reader.until("job.queued");
    const ended = gateway.end();
    await reader.rest();
    await ended;
  });

  test("a reader that stops reading holds one page, and loses nothing", async () => {
    await using gateway = await GatewaySandbox.open();
    const { id } = await gateway.submit(jobOf(30_000));
    const { jobs } = gateway.context.store;
    let read = 0;
    const events = jobs.events.bind(jobs);
    jobs.events = async (job, after, limit) => {
      const page = await events(job, after, limit);
      read += page.length;
      return page;
    };
    await using slow = new SlowReader(gateway.port, `/v1/jobs/${id}/events`);
    await slow.opened;
    await gateway.fetch(`/v1/jobs/${id}/cancel`, { method: "POST" });
    await eventually(async () => (await gateway.json(`/v1/jobs/${id}`)).state === "canceled");
    // What fits into the sockets' buffers on the way has been read, and no more.
    expect(read).toBeLessThan(29_000);
    const held = read;
    expect((await gateway.json(`/v1/jobs/${id}`)).state).toBe("canceled");
    expect(read).toBe(held);
    const ids = (await slow.all()).matchAll(/^id: (\d+)$/gm);
    const numbers = [...ids].map(([, number]) => Number(number));
    expect(numbers.length).toBeGreaterThan(30_000);
    expect(numbers).toEqual([...new Set(numbers)].sort((a, b) => a - b));
  });
});

describe("GET /v1/jobs/{id}/results", () => {
  test("gives results as submitted, as they ended, and from an index on", async () => {
    await using gateway = await GatewaySandbox.open();
    const { id } = await gateway.submit(jobOf(4));
    const claims = [await gateway.claim(), await gateway.claim(), await gateway.claim()];
    const indexes = async (query: string) => {
      const response = await gateway.fetch(`/v1/jobs/${id}/results${query}`);
      expect(response.headers.get("content-type")).toBe("application/x-ndjson");
      return linesOf<TaskResult>(await response.text()).map(({ index }) => index);
    };
    expect(await indexes("")).toEqual([]);
    await gateway.finish(claims[2]!, { stdout: "two" });
    await gateway.finish(claims[0]!, { exitCode: 0 });
    expect(await indexes("")).toEqual([0]);
    expect(await indexes("?order=completion")).toEqual([2, 0]);
    expect(await indexes("?order=completion&after=1")).toEqual([0]);
    expect(await indexes("?order=completion&after=2")).toEqual([]);
    await gateway.finish(claims[1]!);
    expect(await indexes("?order=index")).toEqual([0, 1, 2]);
    expect(await indexes("?from=2")).toEqual([2]);
    const mixed = ["after=1", "order=completion&from=1"];
    for (const query of ["order=name", "follow=1", "from=-1", "from=x", ...mixed]) {
      expect(await gateway.problem(`/v1/jobs/${id}/results?${query}`)).toMatchObject({ status: 400 });
    }
  });

  test("gives what tasks have returned, whatever JSON it is, and none where there is none", async () => {
    await using gateway = await GatewaySandbox.open();
    const values = [{ a: ["ä", "\0", 1.5] }, null, false, "x".repeat(1024 * 1024 - 2), "", undefined];
    const { id } = await gateway.submit(jobOf(values.length));
    for (const value of values) {
      const json = value === undefined ? undefined : JSON.stringify(value);
      await gateway.finish(await gateway.claim(), { value: json, stdout: value === undefined ? "out" : "" });
    }
    const response = await gateway.fetch(`/v1/jobs/${id}/results`);
    const results = linesOf<TaskResult>(await response.text());
    expect(results.map(({ value }) => value)).toEqual(values);
    expect(results.at(-1)).not.toHaveProperty("value");
    expect(results.at(-1)?.stdout).toBe("out");
  });

  test("waits for the rest when it is to follow", async () => {
    await using gateway = await GatewaySandbox.open();
    const { id } = await gateway.submit(jobOf(3));
    const claims = [await gateway.claim(), await gateway.claim(), await gateway.claim()];
    await using byIndex = new StreamReader(await gateway.fetch(`/v1/jobs/${id}/results?follow=true`));
    await using byEnd = new StreamReader(
      await gateway.fetch(`/v1/jobs/${id}/results?follow=true&order=completion`),
    );
    const indexOf = (line: string) => (JSON.parse(line) as TaskResult).index;
    await gateway.finish(claims[1]!);
    expect(indexOf(await byEnd.until("}\n"))).toBe(1);
    await gateway.finish(claims[0]!);
    expect(indexOf(await byEnd.until("}\n"))).toBe(0);
    expect(indexOf(await byIndex.until("}\n"))).toBe(0);
    expect(indexOf(await byIndex.until("}\n"))).toBe(1);
    await gateway.finish(claims[2]!, { stdout: "last" });
    for (const reader of [byIndex, byEnd]) {
      expect(linesOf<TaskResult>(await reader.rest())).toMatchObject([{ index: 2, stdout: "last" }]);
    }
  });
});

describe("GET /v1/jobs/{id}/logs", () => {
  async function logged() {
    const gateway = await GatewaySandbox.open();
    const { id } = await gateway.submit(jobOf(2));
    const { logs } = gateway.context.store;
    const print = (task: number, text: string, stream: LogChunk["stream"] = "stdout") =>
      logs.append(id, [{ task, attempt: 1, stream, text }]);
    return { gateway, id, print };
  }

  test("gives pieces as JSON and as text, of all tasks or of one", async () => {
    const { gateway, id, print } = await logged();
    await using _ = gateway;
    await print(0, "zero\n");
    await print(1, "öne\n", "stderr");
    await print(0, "more\n");
    const path = `/v1/jobs/${id}/logs`;
    const chunks = linesOf<LogChunk>(await (await gateway.fetch(path)).text());
    expect(chunks.map(({ task, stream, text }) => [task, stream, text])).toEqual([
      [0, "stdout", "zero\n"],
      [1, "stderr", "öne\n"],
      [0, "stdout", "more\n"],
    ]);
    const text = async (query: string, accept?: string) => {
      const response = await gateway.fetch(path + query, accept === undefined ? {} : { headers: { accept } });
      expect(response.headers.get("content-type")).toBe("text/plain; charset=utf-8");
      return response.text();
    };
    expect(await text("?format=text")).toBe("zero\nöne\nmore\n");
    expect(await text("?format=text&task=0")).toBe("zero\nmore\n");
    expect(await text("?task=1", "text/plain")).toBe("öne\n");
    expect(await text(`?format=text&after=${chunks[1]!.id}`)).toBe("more\n");
    const json = await gateway.fetch(`${path}?format=ndjson`, { headers: { accept: "text/plain" } });
    expect(json.headers.get("content-type")).toBe("application/x-ndjson");
    await json.text();
  });

  test("follows until the job has ended, with all that was printed before", async () => {
    const { gateway, id, print } = await logged();
    await using _ = gateway;
    const answer = gateway.fetch(`/v1/jobs/${id}/logs?follow=true&format=text`);
    await print(0, "one\n");
    await using reader = new StreamReader(await answer);
    expect(await reader.until("\n")).toBe("one\n");
    await print(0, "two\n");
    expect(await reader.until("\n")).toBe("two\n");
    await gateway.finish(await gateway.claim());
    await print(1, "three\n");
    await gateway.finish(await gateway.claim());
    expect(await reader.rest()).toBe("three\n");
  });
});

/** Asks for a stream over a bare socket and does not read it. */
class SlowReader implements AsyncDisposable {
  readonly #socket: ReturnType<typeof connect>;
  /** The answer has begun. */
  readonly opened: Promise<void>;
  #text = "";

  constructor(port: number, path: string) {
    this.#socket = connect(port, "127.0.0.1");
    this.#socket.write(`GET ${path} HTTP/1.1\r\nHost: 127.0.0.1:${port}\r\nConnection: close\r\n\r\n`);
    this.opened = new Promise((resolve) => {
      this.#socket.once("data", (data) => {
        this.#socket.pause();
        this.#text += data;
        resolve();
      });
    });
  }

  /** Reads it all now. */
  async all(): Promise<string> {
    const closed = new Promise<void>((resolve) => this.#socket.once("close", () => resolve()));
    this.#socket.on("data", (data) => {
      this.#text += data;
    });
    this.#socket.resume();
    await closed;
    // Without the lines between the chunks of the transfer.
    return this.#text.replace(/\r\n[0-9a-f]+\r\n/g, "");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#socket.destroy();
  }
}
