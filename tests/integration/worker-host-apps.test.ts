import { expect, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import type { WorkerClient } from "../../guest-agent/protocol/worker/mod.ts";
import { bundleWorker } from "../../guest-agent/worker-host/bundle.ts";
import { answerOf, workerRequest } from "../../runtime/workers/js/http.ts";
import { answersApp, askAll, comparable, type JsApp, jsApps, PlainBun } from "../support/js-apps.ts";
import { WorkerHostUnderTest } from "../support/worker-process.ts";

/** What a gateway does with a request, without its forks: as an HTTP server. */
function front(client: WorkerClient) {
  const server = Bun.serve({
    hostname: "127.0.0.1",
    port: 0,
    development: false,
    async fetch(request) {
      const asked = workerRequest(request);
      const { answer } = await answerOf(asked.method, await client.fetch(asked));
      return answer;
    },
  });
  return { port: server.port!, [Symbol.asyncDispose]: () => server.stop(true) };
}

async function answersOfWorker(app: JsApp) {
  await using host = await WorkerHostUnderTest.start();
  const { code } = await bundleWorker(app.entry);
  const entry = join(host.directory, "app.js");
  writeFileSync(entry, code);
  const client = await host.client();
  await client.load({ entry, name: app.name });
  await client.forked({
    vm: { id: "vm-1", index: 1, generation: 1 },
    env: {},
    secrets: {},
  });
  await using server = front(client);
  return await askAll(server.port, app);
}

for (const app of [...jsApps, answersApp]) {
  test(`${app.name} answers ${app.requests.length} requests byte for byte as on plain Bun`, async () => {
    await using bun = await PlainBun.serving(app.entry);
    const plain = comparable(app, await askAll(bun.port, app));
    const worker = comparable(app, await answersOfWorker(app));
    for (const [i, answer] of worker.entries()) expect(answer).toEqual(plain[i]);
    expect(worker.length).toBe(app.requests.length);
  }, 60_000);
}
