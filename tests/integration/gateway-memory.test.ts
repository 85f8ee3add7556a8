import { describe, expect, test } from "bun:test";
import { connect } from "node:net";
import { join } from "node:path";
import type { Job } from "../../runtime/api/mod.ts";
import { type CliRun, CliSandbox, root } from "../support/cli.ts";
import { eventually, jobOf } from "../support/gateway-sandbox.ts";

const MIB = 1024 * 1024;
const TASKS = 200_000;

/** A gateway in a process of its own, whose memory can be measured. It takes no task. */
async function startGateway(sandbox: CliSandbox): Promise<{ run: CliRun; url: string; port: number }> {
  const runtime = process.versions.bun ? [] : ["run", "-A", "--no-check"];
  const program = [process.execPath, ...runtime, join(root, "tests/support/gateway-process.ts")];
  const run = sandbox.start(["--data", join(sandbox.directory, "data"), "--slots", "0"], { program });
  const [ready = ""] = await run.until(/^\{"url".*\}$/m);
  const { url, port } = JSON.parse(ready);
  // What it takes to answer at all is no part of what is measured.
  for (let n = 0; n < 20; n++) {
    await (await post(`${url}/v1/jobs`, JSON.stringify(jobOf(1)), "application/json")).text();
  }
  return { run, url, port };
}

function post(url: string, body: BodyInit | ReadableStream, type: string): Promise<Response> {
  return fetch(url, {
    method: "POST",
    body,
    headers: { "content-type": type },
    duplex: "half",
  } as RequestInit);
}

async function jobAt(url: string): Promise<Job> {
  return (await fetch(url)).json();
}

describe("a gateway's memory", () => {
  test(`holds a window of ${TASKS} inputs that arrive as NDJSON`, async () => {
    await using sandbox = new CliSandbox();
    const { run, url } = await startGateway(sandbox);
    const before = run.peakMemory();
    const padding = "x".repeat(1500);
    let sent = 0;
    let line = 0;
    const body = new ReadableStream<Uint8Array>(
      {
        pull(controller) {
          const lines: string[] = [];
          if (line === 0) lines.push(JSON.stringify({ worker: { image: "base", command: ["cat"] } }));
          for (let n = 0; n < 50 && line < TASKS; n++, line++)
            lines.push(`{"n":${line},"padding":"${padding}"}`);
          const chunk = new TextEncoder().encode(`${lines.join("\n")}\n`);
          sent += chunk.byteLength;
          controller.enqueue(chunk);
          if (line === TASKS) controller.close();
        },
      },
      { highWaterMark: 0 },
    );
    const answer = await post(`${url}/v1/jobs`, body, "application/x-ndjson");
    expect(answer.status).toBe(202);
    const job: Job = await answer.json();
    expect(job.tasks.total).toBe(TASKS);
    expect(sent).toBeGreaterThan(280 * MIB);
    expect(run.peakMemory() - before).toBeLessThan(224 * MIB);
    const last = await fetch(`${url}/v1/jobs/${job.id}/tasks/${TASKS - 1}`);
    expect(((await last.json()) as { input: { n: number } }).input.n).toBe(TASKS - 1);
  });

  test("does not grow with what a reader of events leaves unread", async () => {
    await using sandbox = new CliSandbox();
    const { run, url, port } = await startGateway(sandbox);
    const submitted = await post(`${url}/v1/jobs`, JSON.stringify(jobOf(100_000)), "application/json");
    const { id }: Job = await submitted.json();
    const sockets = Array.from({ length: 20 }, () => {
      const socket = connect(port, "127.0.0.1");
      socket.write(`GET /v1/jobs/${id}/events HTTP/1.1\r\nHost: 127.0.0.1:${port}\r\n\r\n`);
      socket.once("data", () => socket.pause());
      return socket;
    });
    await Promise.all(sockets.map((socket) => new Promise((resolve) => socket.once("data", resolve))));
    const before = run.peakMemory();
    await (await fetch(`${url}/v1/jobs/${id}/cancel`, { method: "POST" })).text();
    await eventually(async () => (await jobAt(`${url}/v1/jobs/${id}`)).state === "canceled");
    // 20 readers times 100,000 events of 150 bytes would be 300 MB.
    expect(run.peakMemory() - before).toBeLessThan(150 * MIB);
    for (const socket of sockets) socket.destroy();
    await eventually(async () =>
      /^flurry_streams_open\{kind="events"\} 0$/m.test(await (await fetch(`${url}/metrics`)).text()),
    );
  });
});
