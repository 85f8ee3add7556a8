import { expect, test } from "bun:test";
import { readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import type { Page, Secret } from "../../runtime/api/mod.ts";
import { eventually, GatewaySandbox } from "../support/gateway-sandbox.ts";
import { ScriptedRuntime } from "../support/scripted-runtime.ts";

const VALUE = "correct horse battery staple";

test("a secret is given to tasks, and shown to nobody", async () => {
  const seen: (string | undefined)[] = [];
  const runtime = new ScriptedRuntime({
    script: ({ env }) => {
      seen.push(env.TOKEN);
      return { exitCode: 0 };
    },
  });
  await using gateway = await GatewaySandbox.open({ runtime: () => runtime });
  const put = await gateway.fetch("/v1/secrets/token", { method: "PUT", json: { value: VALUE } });
  expect(put.status).toBe(200);
  const answers = [await put.text()];
  const worker = { image: "base", command: ["true"], secrets: { TOKEN: "token" } };
  const job = await gateway.submit({ worker, tasks: { count: 1 } });
  await eventually(async () => (await gateway.json(`/v1/jobs/${job.id}`)).state === "succeeded");
  expect(seen).toEqual([VALUE]);
  for (const path of [
    "/v1/secrets",
    `/v1/jobs/${job.id}`,
    `/v1/jobs/${job.id}/tasks/0`,
    `/v1/jobs/${job.id}/results`,
  ]) {
    answers.push(await (await gateway.fetch(path)).text());
  }
  expect(answers.join("\n")).not.toContain(VALUE);
  await gateway.end();
  for (const file of readdirSync(gateway.dir, { recursive: true, encoding: "utf8" })) {
    const path = join(gateway.dir, file);
    if (statSync(path).isFile()) expect([file, readFileSync(path).includes(VALUE)]).toEqual([file, false]);
  }
});

test("a secret is set, set again, listed by its name, and removed", async () => {
  await using gateway = await GatewaySandbox.open();
  for (const value of ["one", "two"]) {
    await gateway.json("/v1/secrets/token", { method: "PUT", json: { value } });
  }
  expect(await gateway.context.store.secrets.value("token", "")).toBe("two");
  const { items } = await gateway.json<Page<Secret>>("/v1/secrets");
  expect(items).toEqual([{ name: "token", createdAt: expect.any(String) as unknown as string }]);
  expect((await gateway.fetch("/v1/secrets/token", { method: "DELETE" })).status).toBe(204);
  const again = await gateway.problem("/v1/secrets/token", { method: "DELETE" });
  expect(again).toMatchObject({ status: 404, code: "SECRET_NOT_FOUND" });
  expect((await gateway.fetch("/v1/secrets/token")).status).toBe(405);
});

test("what is no secret is refused without being repeated", async () => {
  await using gateway = await GatewaySandbox.open();
  for (const json of [
    { value: "" },
    { value: `${VALUE}\0` },
    { value: VALUE, other: 1 },
    { value: [VALUE] },
    VALUE,
  ]) {
    const response = await gateway.fetch("/v1/secrets/token", { method: "PUT", json });
    expect([json, response.status]).toEqual([json, 400]);
    expect(await response.text()).not.toContain(VALUE);
  }
});
