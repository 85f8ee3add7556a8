import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { bundleWorker } from "../../guest-agent/worker-host/bundle.ts";
import type { WorkerVersion } from "../../runtime/api/mod.ts";
import { VmTaskRuntime } from "../../runtime/workers/vm-task-runtime.ts";
import { GatewaySandbox } from "../support/gateway-sandbox.ts";
import type { WireAnswer } from "../support/http-exchange.ts";
import { answersApp, askAll, comparable, type JsApp, jsApps, PlainBun } from "../support/js-apps.ts";
import { SETUP_MS, TEST_MS, type TemporaryDirectory } from "../support/vm.ts";
import { homeWithImages } from "../support/workers-runtime.ts";

let home: TemporaryDirectory;
let runtime: VmTaskRuntime;
let gateway: GatewaySandbox;

beforeAll(async () => {
  home = await homeWithImages();
  runtime = await VmTaskRuntime.open({ home: home.path, slots: 8 });
  gateway = await GatewaySandbox.open({ runtime: () => runtime });
  // All of them, so that one is loaded while another one is asked.
  for (const app of apps) await deploy(app);
}, SETUP_MS);

afterAll(async () => {
  const { run, shm } = runtime.host.owner;
  await gateway[Symbol.asyncDispose]();
  expect([run, shm].filter((path) => existsSync(path))).toEqual([]);
  home[Symbol.dispose]();
}, TEST_MS);

const apps = [...jsApps, answersApp];

/** Deploys an app as a worker of its name, with a host name too. */
async function deploy({ name, entry }: JsApp): Promise<void> {
  const { code } = await bundleWorker(entry);
  const http = { isolation: { mode: "shared" }, hosts: [`${name}.example`] };
  const json = { module: { code, entry: "worker.ts" }, memoryMiB: 512, http };
  await gateway.json<WorkerVersion>(`/v1/workers/${name}`, { method: "PUT", json }, 201);
}

async function ready({ name }: JsApp): Promise<void> {
  for (;;) {
    const { state, error } = await gateway.json<WorkerVersion>(`/v1/workers/${name}`);
    if (state === "ready") return;
    if (state === "failed") throw new Error(error?.message);
    // There is no event of it: `flurry deploy` looks as often.
    await sleep(250);
  }
}

/** What the gateway adds below its own origin, and takes from no app. */
const SANDBOX = "sandbox allow-downloads allow-forms allow-modals allow-popups allow-scripts";

/** The app's own answer: without the policy that each answer below /w/ has beside the app's. */
function withoutPolicy(answer: WireAnswer): WireAnswer {
  const headers = answer.headers.flatMap(([name, value]): [string, string][] => {
    if (name !== "content-security-policy") return [[name, value]];
    expect(value).toEndWith(SANDBOX);
    const own = value.slice(0, -SANDBOX.length).replace(/, $/, "");
    return own === "" ? [] : [[name, own]];
  });
  return { ...answer, headers };
}

describe("applications that were not written for Flurry", () => {
  for (const app of apps) {
    test(
      `${app.name} answers ${app.requests.length} requests through /w/ and by its host name as on plain Bun`,
      async () => {
        await ready(app);
        await using bun = await PlainBun.serving(app.entry);
        const added = ["x-request-id"];
        for (const options of [{ prefix: `/w/${app.name}` }, { host: `${app.name}.example` }]) {
          const plain = await askAll(bun.port, app, { ...options, prefix: "" });
          const answers = await askAll(gateway.port, app, options);
          for (const { headers } of answers) expect(headers.map(([name]) => name)).toContain("x-request-id");
          const own = options.prefix === undefined ? answers : answers.map(withoutPolicy);
          const expected = comparable(app, plain);
          for (const [i, answer] of comparable(app, own, added).entries())
            expect(answer).toEqual(expected[i]);
        }
      },
      TEST_MS,
    );
  }
});
