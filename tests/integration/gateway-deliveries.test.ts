import { expect, test } from "bun:test";
import type { Delivery, Page } from "../../runtime/api/mod.ts";
import { eventually, GatewaySandbox, jobOf } from "../support/gateway-sandbox.ts";
import { Receiver, status } from "../support/gateway-webhooks.ts";
import { ScriptedRuntime } from "../support/scripted-runtime.ts";

const SECRET = "a secret of the test's";

test("a job tells its webhook of the states that it asked for, and shows each attempt", async () => {
  await using receiver = await Receiver.open(status(200));
  await using gateway = await GatewaySandbox.open({
    runtime: () => new ScriptedRuntime(),
    webhookAllow: [receiver.host],
  });
  const webhook = {
    url: `http://${receiver.host}/hook`,
    secret: SECRET,
    events: ["job.running", "job.succeeded"],
  };
  const job = await gateway.submit(jobOf(1, { webhook }));
  const list = async () => (await gateway.json<Page<Delivery>>(`/v1/jobs/${job.id}/deliveries`)).items;
  await eventually(async () => {
    const items = await list();
    return items.length === 2 && items.every(({ state }) => state === "delivered");
  });
  expect(
    (await list()).map(({ event, url, attempts }) => [event, url, attempts.map(({ status }) => status)]),
  ).toEqual([
    ["job.running", webhook.url, [200]],
    ["job.succeeded", webhook.url, [200]],
  ]);
  expect(receiver.received.map(({ body }) => JSON.parse(body).type).toSorted()).toEqual(webhook.events);
  for (const path of [`/v1/jobs/${job.id}/deliveries`, `/v1/jobs/${job.id}`]) {
    expect(await (await gateway.fetch(path)).text()).not.toContain(SECRET);
  }
  for (const { body } of receiver.received) expect(body).not.toContain(SECRET);
});

test("a webhook that can be seen to be private is refused when the job is submitted or checked", async () => {
  await using gateway = await GatewaySandbox.open({ webhookAllow: ["127.0.0.1:9000"] });
  for (const url of [
    "http://127.0.0.1/",
    "http://[::ffff:10.0.0.1]/",
    "http://localhost:9000/",
    "http://2130706433/",
  ]) {
    for (const path of ["/v1/jobs", "/v1/jobs:validate"]) {
      const json = jobOf(1, { webhook: { url } });
      const problem = await gateway.problem(path, { method: "POST", json });
      expect([url, path, problem.status, problem.code]).toEqual([url, path, 422, "WEBHOOK_FORBIDDEN"]);
    }
  }
  await gateway.submit(jobOf(1, { webhook: { url: "http://127.0.0.1:9000/", events: ["job.failed"] } }));
});
