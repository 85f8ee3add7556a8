import { describe, expect, test } from "bun:test";
import { GatewaySandbox, jobOf, StreamReader } from "../support/gateway-sandbox.ts";

const STREAMS = ["events", "results?follow=true&order=completion", "logs?follow=true"];

describe("a stream that is open", () => {
  for (const stream of STREAMS) {
    test(`ends when its reader's key is removed: ${stream}`, async () => {
      await using gateway = await GatewaySandbox.open();
      const admin = await gateway.key(["admin"]);
      const { id: reader, key } = await gateway.key(["submit", "read"]);
      const { id } = await gateway.submit(jobOf(3), { key });
      await using open = new StreamReader(await gateway.fetch(`/v1/jobs/${id}/${stream}`, { key }));
      await using allowed = new StreamReader(
        await gateway.fetch(`/v1/jobs/${id}/${stream}`, { key: admin.key }),
      );
      await Promise.all([open.until("\n"), allowed.until("\n")]);
      await gateway
        .json<null>(`/v1/keys/${reader}`, { method: "DELETE", key: admin.key }, 204)
        .catch(() => null);
      const left = open.rest();
      const claim = await gateway.claim(reader);
      await gateway.context.store.logs.append(id, [
        { task: 0, attempt: 1, stream: "stdout", text: "kept from them" },
      ]);
      await gateway.finish(claim, { stdout: "kept from them" });
      expect(await left).not.toMatch(/task\.running|kept from them/);
      // Another key's stream goes on.
      expect(await allowed.until(stream === "events" ? "task.succeeded" : "kept from them")).toMatch(
        /task\.succeeded|kept from them/,
      );
    });
  }

  test("of everybody ends when the gateway gets its first key", async () => {
    await using gateway = await GatewaySandbox.open();
    const { id } = await gateway.submit(jobOf(1));
    await using open = new StreamReader(await gateway.fetch(`/v1/jobs/${id}/events`));
    await open.until("job.queued");
    await gateway.key(["admin"]);
    await gateway.finish(await gateway.claim());
    expect(await open.rest()).not.toMatch(/succeeded/);
  });
});
