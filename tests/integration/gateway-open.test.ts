import { describe, expect, test } from "bun:test";
import { createServer } from "node:net";
import { codeOf } from "../../errors/errors.ts";
import type { Job, Page, Task } from "../../runtime/api/mod.ts";
import { openGateway } from "../../runtime/gateway/open.ts";
import { GatewaySandbox, idleRuntime, jobOf } from "../support/gateway-sandbox.ts";
import { ScriptedRuntime } from "../support/scripted-runtime.ts";
import { temporaryDirectory } from "../support/vm.ts";

describe("openGateway()", () => {
  test("runs jobs from submission to results", async () => {
    const runtime = () =>
      new ScriptedRuntime({
        script: async ({ stdin, print, leave }) => {
          await print(stdin ?? "");
          await leave("copy.txt", new TextDecoder().decode(stdin));
          return { exitCode: 0 };
        },
      });
    await using gateway = await GatewaySandbox.open({ runtime });
    const inputs = Array.from({ length: 20 }, (_, n) => `input ${n}`);
    const { id } = await gateway.submit({ worker: { image: "base", command: ["cat"] }, tasks: { inputs } });
    const results = await (await gateway.fetch(`/v1/jobs/${id}/results?follow=true`)).text();
    const lines = results
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line));
    expect(lines.map(({ stdout }) => stdout)).toEqual(inputs);
    expect(await (await gateway.fetch(`/v1/jobs/${id}/artifacts/7/copy.txt`)).text()).toBe("input 7");
    const logs = await (await gateway.fetch(`/v1/jobs/${id}/logs?format=text&task=3`)).text();
    expect(logs).toBe("input 3");
  });

  test("without a key, listens to this machine only", async () => {
    using directory = temporaryDirectory();
    const open = (hostname: string) =>
      openGateway({ dir: directory.path, listen: { hostname, port: 0 }, runtime: idleRuntime });
    for (const hostname of ["0.0.0.0", "::", "192.0.2.1", "example.org"]) {
      expect([hostname, await open(hostname).catch(codeOf)]).toEqual([hostname, "KEYS_REQUIRED"]);
    }
    for (const hostname of ["127.0.0.1", "localhost"]) {
      await using gateway = await open(hostname);
      expect((await fetch(`${gateway.url}/healthz`)).status).toBe(200);
    }
  });

  test("with a key, listens to all who show one", async () => {
    await using first = await GatewaySandbox.open();
    const { key } = await first.key(["admin"]);
    await first.end();
    await using gateway = await openGateway({
      dir: first.dir,
      listen: { hostname: "0.0.0.0", port: 0 },
      runtime: idleRuntime,
    });
    const url = `http://127.0.0.1:${gateway.port}/v1/jobs`;
    expect((await fetch(url)).status).toBe(401);
    expect((await fetch(url, { headers: { authorization: `Bearer ${key}` } })).status).toBe(200);
  });

  test("says when it cannot listen, and leaves the data to the next", async () => {
    using directory = temporaryDirectory();
    const other = createServer();
    await new Promise<void>((resolve) => other.listen(0, "127.0.0.1", resolve));
    const { port } = other.address() as { port: number };
    let disposed = 0;
    const runtime = () => ({
      ...idleRuntime(),
      [Symbol.asyncDispose]: async () => {
        disposed += 1;
      },
    });
    const open = (at: number) =>
      openGateway({ dir: directory.path, listen: { hostname: "127.0.0.1", port: at }, runtime });
    const failure = await open(port).catch((error: Error) => error.message);
    expect(failure).toMatch(new RegExp(`^Cannot listen on 127.0.0.1:${port}: `));
    expect(disposed).toBe(1);
    {
      await using gateway = await open(0);
      expect((await fetch(`${gateway.url}/readyz`)).status).toBe(200);
    }
    await new Promise((resolve) => other.close(resolve));
  });

  test("shares its port with no other gateway", async () => {
    await using first = await GatewaySandbox.open();
    const listen = { hostname: "127.0.0.1", port: first.port };
    await expect(GatewaySandbox.open({ listen })).rejects.toMatchObject({
      code: "BAD_ARGUMENT",
      message: expect.stringContaining(`Cannot listen on 127.0.0.1:${first.port}`),
    });
  });

  test("a second gateway on the same data is refused, and the first goes on", async () => {
    await using first = await GatewaySandbox.open();
    const listen = { hostname: "127.0.0.1", port: 0 };
    const second = openGateway({ dir: first.dir, listen, runtime: idleRuntime });
    expect(await second.catch(codeOf)).toBe("DATA_IN_USE");
    await first.submit(jobOf(1));
  });

  for (const drainMs of [60_000, 0]) {
    test(`at its end, gives what runs ${drainMs} ms and keeps the rest for the next`, async () => {
      const begun = Promise.withResolvers<void>();
      const release = Promise.withResolvers<void>();
      const script = async () => {
        begun.resolve();
        await release.promise;
        return { exitCode: 0 };
      };
      await using first = await GatewaySandbox.open({
        runtime: () => new ScriptedRuntime({ script }),
        drainMs,
      });
      const { id } = await first.submit(jobOf(1));
      await begun.promise;
      const ended = first.end();
      if (drainMs > 0) release.resolve();
      await ended;
      await using next = await openGateway({
        dir: first.dir,
        listen: { hostname: "127.0.0.1", port: 0 },
        runtime: idleRuntime,
      });
      const task: Task = await (await fetch(`${next.url}/v1/jobs/${id}/tasks/0`)).json();
      // What was cut counts as no attempt.
      expect([task.state, task.attempt]).toEqual(drainMs > 0 ? ["succeeded", 1] : ["queued", 0]);
    });
  }

  test("an upload that the end of the gateway cuts is no job", async () => {
    await using first = await GatewaySandbox.open();
    const arriving = Promise.withResolvers<void>();
    const body = new ReadableStream<Uint8Array>({
      async pull(controller) {
        const line = JSON.stringify({ worker: { image: "base", command: ["cat"] } });
        controller.enqueue(new TextEncoder().encode(`${line}\n1\n2\n`));
        arriving.resolve();
        await new Promise(() => undefined);
      },
    });
    const headers = { "content-type": "application/x-ndjson" };
    const answer = first
      .fetch("/v1/jobs", { method: "POST", body, headers, duplex: "half" } as RequestInit)
      .then((response) => response.status)
      .catch(() => 0);
    await arriving.promise;
    await first.end();
    expect([0, 503]).toContain(await answer);
    await using next = await openGateway({
      dir: first.dir,
      listen: { hostname: "127.0.0.1", port: 0 },
      runtime: idleRuntime,
    });
    const page: Page<Job> = await (await fetch(`${next.url}/v1/jobs`)).json();
    expect(page.items).toEqual([]);
  });
});
