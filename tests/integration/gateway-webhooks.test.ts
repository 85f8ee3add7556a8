import { describe, expect, test } from "bun:test";
import { createHmac } from "node:crypto";
import type { ServerResponse } from "node:http";
import { WebhookGuard } from "../../runtime/gateway/webhook-guard.ts";
import { WEBHOOK_ATTEMPTS } from "../../runtime/gateway/webhook-sender.ts";
import { testCertificate } from "../support/gateway-certificate.ts";
import { Receiver, status, WebhookBench } from "../support/gateway-webhooks.ts";

const SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/** Lets everything happen that can happen without the test's clock going on. */
async function settled(): Promise<void> {
  for (let turn = 0; turn < 20; turn++) await new Promise((resolve) => setImmediate(resolve));
}

describe("WebhookSender", () => {
  test("delivers what has happened, signed so that the receiver can verify it", async () => {
    await using receiver = await Receiver.open(status(204));
    await using bench = await WebhookBench.open();
    const job = await bench.canceledJob(`http://${receiver.host}/hook?a=b`, SECRET);
    await bench.deliveries.until(() => bench.deliveries.noted === 1);
    const [{ path, headers, body }] = receiver.received as [(typeof receiver.received)[0]];
    expect(path).toBe("/hook?a=b");
    expect(headers["content-type"]).toBe("application/json");
    const message = JSON.parse(body);
    expect(message.type).toBe("job.canceled");
    expect(message.data.id).toBe(job);
    expect(headers["webhook-id"]).toBe(message.id);
    const timestamp = Math.floor(bench.clock.now() / 1000);
    expect(headers["webhook-timestamp"]).toBe(String(timestamp));
    const mac = createHmac("sha256", Buffer.from(SECRET.slice("whsec_".length), "base64"));
    mac.update(`${message.id}.${timestamp}.${body}`);
    expect(headers["webhook-signature"]).toBe(`v1,${mac.digest("base64")}`);
    const delivery = await bench.delivery(job);
    expect(delivery.state).toBe("delivered");
    expect(delivery.attempts.map(({ status, error }) => [status, error])).toEqual([[204, undefined]]);
    expect(bench.outcomes).toEqual(["delivered"]);
  });

  test("sends no signature without a secret", async () => {
    await using receiver = await Receiver.open(status(200));
    await using bench = await WebhookBench.open();
    await bench.canceledJob(`http://${receiver.host}/`);
    await receiver.count(1);
    expect(receiver.received[0]?.headers).not.toHaveProperty("webhook-signature");
  });

  test("tries again by its schedule, and not before, until it is received", async () => {
    await using receiver = await Receiver.open((response, nth) => status(nth < 3 ? 500 : 200)(response, nth));
    await using bench = await WebhookBench.open();
    const job = await bench.canceledJob(`http://${receiver.host}/`);
    await bench.deliveries.until(() => bench.deliveries.noted === 1);
    await settled();
    bench.clock.advance(4999);
    await settled();
    expect(receiver.received).toHaveLength(1);
    bench.clock.advance(1);
    await bench.deliveries.until(() => bench.deliveries.noted === 2);
    expect((await bench.delivery(job)).state).toBe("pending");
    await settled();
    bench.clock.advance(30_000);
    await bench.deliveries.until(() => bench.deliveries.noted === 3);
    const delivery = await bench.delivery(job);
    expect(delivery.state).toBe("delivered");
    expect(delivery.attempts.map(({ status }) => status)).toEqual([500, 500, 200]);
    const ids = receiver.received.map(({ headers }) => headers["webhook-id"]);
    expect(new Set(ids).size).toBe(1);
    expect(bench.outcomes).toEqual(["retrying", "retrying", "delivered"]);
  });

  test("gives up after the last attempt, and shows each", async () => {
    await using receiver = await Receiver.open(status(503));
    await using bench = await WebhookBench.open();
    const job = await bench.canceledJob(`http://${receiver.host}/`);
    for (let attempt = 1; attempt <= WEBHOOK_ATTEMPTS; attempt++) {
      await bench.deliveries.until(() => bench.deliveries.noted === attempt);
      await settled();
      bench.clock.advance(3 * 3_600_000);
    }
    await settled();
    expect(receiver.received).toHaveLength(WEBHOOK_ATTEMPTS);
    const delivery = await bench.delivery(job);
    expect(delivery.state).toBe("failed");
    expect(delivery.nextTryAt).toBeUndefined();
    expect(delivery.attempts.map(({ error }) => error)).toEqual(
      Array(WEBHOOK_ATTEMPTS).fill("Answered with 503"),
    );
  });

  test("waits as long as the receiver asks, when that is longer", async () => {
    await using receiver = await Receiver.open(status(429, { "Retry-After": "60" }));
    await using bench = await WebhookBench.open();
    await bench.canceledJob(`http://${receiver.host}/`);
    await bench.deliveries.until(() => bench.deliveries.noted === 1);
    await settled();
    bench.clock.advance(59_999);
    await settled();
    expect(receiver.received).toHaveLength(1);
    bench.clock.advance(1);
    await receiver.count(2);
  });

  test("does not try again what is 410 Gone", async () => {
    await using receiver = await Receiver.open(status(410));
    await using bench = await WebhookBench.open();
    const job = await bench.canceledJob(`http://${receiver.host}/`);
    await bench.deliveries.until(() => bench.deliveries.noted === 1);
    expect((await bench.delivery(job)).state).toBe("failed");
  });

  test("follows no redirect", async () => {
    await using target = await Receiver.open(status(200));
    await using receiver = await Receiver.open(status(307, { Location: `http://${target.host}/` }));
    await using bench = await WebhookBench.open();
    const job = await bench.canceledJob(`http://${receiver.host}/`);
    await bench.deliveries.until(() => bench.deliveries.noted === 1);
    const { state, attempts } = await bench.delivery(job);
    expect(state).toBe("pending");
    expect(attempts[0]).toMatchObject({ status: 307, error: "A redirect, which is not followed" });
    expect(target.received).toHaveLength(0);
  });

  test("waits for no answer longer than its timeout", async () => {
    await using receiver = await Receiver.open(() => undefined);
    await using bench = await WebhookBench.open({ timeoutMs: 50 });
    const job = await bench.canceledJob(`http://${receiver.host}/`);
    await bench.deliveries.until(() => bench.deliveries.noted === 1);
    expect((await bench.delivery(job)).attempts[0]?.error).toBe("No answer in 50 ms");
  });

  test("reads no endless answer", async () => {
    const closed = Promise.withResolvers<void>();
    await using receiver = await Receiver.open((response) => {
      response.writeHead(200);
      const more = () =>
        void (response.destroyed || response.write(Buffer.alloc(65_536), () => setImmediate(more)));
      response.on("close", () => closed.resolve());
      more();
    });
    await using bench = await WebhookBench.open();
    const job = await bench.canceledJob(`http://${receiver.host}/`);
    await bench.deliveries.until(() => bench.deliveries.noted === 1);
    expect((await bench.delivery(job)).state).toBe("delivered");
    await closed.promise;
  });

  test("says why nobody can be reached", async () => {
    const receiver = await Receiver.open(status(200));
    const { host } = receiver;
    await receiver[Symbol.asyncDispose]();
    await using bench = await WebhookBench.open();
    const job = await bench.canceledJob(`http://${host}/`);
    await bench.deliveries.until(() => bench.deliveries.noted === 1);
    expect((await bench.delivery(job)).attempts[0]?.error).toContain("ECONNREFUSED");
  });

  test("has at most 16 attempts under way", async () => {
    await using stack = new AsyncDisposableStack();
    const held: ServerResponse[] = [];
    const hold = (response: ServerResponse) => void held.push(response);
    const receivers = await Promise.all(
      Array.from({ length: 5 }, async () => stack.use(await Receiver.open(hold))),
    );
    await using bench = await WebhookBench.open();
    for (let job = 0; job < 4; job++) {
      for (const { host } of receivers) await bench.canceledJob(`http://${host}/`);
    }
    while (held.length < 16) await settled();
    await settled();
    expect(held).toHaveLength(16);
    held[0]!.end();
    while (held.length < 17) await settled();
    await settled();
    expect(held).toHaveLength(17);
  });

  test("has 4 attempts under way to a receiver that does not answer, and delays no message to another", async () => {
    const held: ServerResponse[] = [];
    await using tarpit = await Receiver.open((response) => void held.push(response));
    await using other = await Receiver.open(status(200));
    await using bench = await WebhookBench.open({ timeoutMs: 600_000 });
    for (let job = 0; job < 50; job++) await bench.canceledJob(`http://${tarpit.host}/${job}`);
    await tarpit.count(4);
    for (let job = 0; job < 20; job++) await bench.canceledJob(`http://${other.host}/`);
    await bench.deliveries.until(() => bench.deliveries.noted === 20);
    expect(other.received).toHaveLength(20);
    await settled();
    expect(tarpit.received).toHaveLength(4);
    while (bench.deliveries.noted < 70) {
      const noted = bench.deliveries.noted;
      held.shift()!.end();
      await bench.deliveries.until(() => bench.deliveries.noted > noted);
      const begun = Math.min(50, noted - 20 + 5);
      await tarpit.count(begun);
      expect(tarpit.received).toHaveLength(begun);
    }
    expect(new Set(tarpit.received.map(({ path }) => path)).size).toBe(50);
  });

  test("delivers all after a restart, also those that waited for a place with their receiver", async () => {
    let answering = false;
    await using tarpit = await Receiver.open((response) => void (answering && response.end()));
    await using bench = await WebhookBench.open({ timeoutMs: 600_000 });
    for (let job = 0; job < 20; job++) await bench.canceledJob(`http://${tarpit.host}/${job}`);
    await tarpit.count(4);
    answering = true;
    await bench.restart();
    await bench.deliveries.until(() => bench.deliveries.noted === 20);
    expect(bench.outcomes).toEqual(Array(20).fill("delivered"));
    const times = (path: string) => tarpit.received.filter((each) => each.path === path).length;
    expect(Array.from({ length: 20 }, (_, job) => times(`/${job}`))).toEqual([
      ...Array(4).fill(2),
      ...Array(16).fill(1),
    ]);
  });

  test("delivers after a restart what was under way, as the same message", async () => {
    await using receiver = await Receiver.open((response, nth) => void (nth > 1 && response.end()));
    await using bench = await WebhookBench.open();
    const job = await bench.canceledJob(`http://${receiver.host}/`);
    await receiver.count(1);
    await bench.restart();
    await bench.deliveries.until(() => bench.deliveries.noted === 1);
    expect((await bench.delivery(job)).state).toBe("delivered");
    const [first, second] = receiver.received;
    expect(second?.headers["webhook-id"]).toBe(first?.headers["webhook-id"]);
    expect(second?.body).toBe(first?.body);
  });

  test("sends once what was received while the store failed", async () => {
    await using receiver = await Receiver.open(status(200));
    await using bench = await WebhookBench.open();
    bench.deliveries.failures = 2;
    const job = await bench.canceledJob(`http://${receiver.host}/`);
    await bench.deliveries.until(() => bench.deliveries.failures === 1);
    await settled();
    bench.clock.advance(1000);
    await bench.deliveries.until(() => bench.deliveries.failures === 0);
    await settled();
    bench.clock.advance(2000);
    await bench.deliveries.until(() => bench.deliveries.noted === 1);
    expect((await bench.delivery(job)).state).toBe("delivered");
    expect(receiver.received).toHaveLength(1);
  });
});

describe("WebhookSender and private networks", () => {
  test("never connects to a name that has come to be of this machine", async () => {
    await using receiver = await Receiver.open(status(200));
    const guard = new WebhookGuard({ resolve: async () => [{ address: "127.0.0.1", family: 4 }] });
    await using bench = await WebhookBench.open({ guard });
    const job = await bench.canceledJob(`http://rebound.test:${receiver.port}/`);
    await bench.deliveries.until(() => bench.deliveries.noted === 1);
    const { state, attempts } = await bench.delivery(job);
    expect(state).toBe("failed");
    expect(attempts[0]?.error).toContain("rebound.test has no public address");
    expect(receiver.received).toHaveLength(0);
  });

  test("connects to the address that was checked, and asks for the name once", async () => {
    await using receiver = await Receiver.open(status(200));
    let asked = 0;
    const guard = new WebhookGuard({
      allow: ["hooks.test"],
      resolve: async () => {
        asked += 1;
        return [{ address: asked === 1 ? "127.0.0.1" : "127.0.0.2", family: 4 }];
      },
    });
    await using bench = await WebhookBench.open({ guard });
    const job = await bench.canceledJob(`http://hooks.test:${receiver.port}/`);
    await bench.deliveries.until(() => bench.deliveries.noted === 1);
    expect((await bench.delivery(job)).state).toBe("delivered");
    expect(asked).toBe(1);
    expect(receiver.received[0]?.headers.host).toBe(`hooks.test:${receiver.port}`);
  });

  test("goes to the next address of a name when it cannot connect to the first", async () => {
    await using receiver = await Receiver.open(status(200));
    const resolve = async () => ["127.0.0.2", "127.0.0.1"].map((address) => ({ address, family: 4 }));
    await using bench = await WebhookBench.open({
      guard: new WebhookGuard({ allow: ["hooks.test"], resolve }),
    });
    const job = await bench.canceledJob(`http://hooks.test:${receiver.port}/`);
    await bench.deliveries.until(() => bench.deliveries.noted === 1);
    expect((await bench.delivery(job)).state).toBe("delivered");
  });

  test.each([
    ["hooks.test", "delivered"],
    ["other.test", "pending"],
  ])("by TLS takes only the name's own certificate: %s is %s", async (name, state) => {
    await using receiver = await Receiver.open(status(200), { secure: true });
    const resolve = async () => [{ address: "127.0.0.1", family: 4 }];
    const guard = new WebhookGuard({ allow: [name], resolve });
    await using bench = await WebhookBench.open({ guard, ca: testCertificate });
    const job = await bench.canceledJob(`https://${name}:${receiver.port}/`);
    await bench.deliveries.until(() => bench.deliveries.noted === 1);
    expect((await bench.delivery(job)).state).toBe(state as "delivered");
    expect(receiver.received).toHaveLength(state === "delivered" ? 1 : 0);
  });

  test("by TLS takes no certificate that nobody vouches for", async () => {
    await using receiver = await Receiver.open(status(200), { secure: true });
    await using bench = await WebhookBench.open();
    const job = await bench.canceledJob(`https://${receiver.host}/`);
    await bench.deliveries.until(() => bench.deliveries.noted === 1);
    expect((await bench.delivery(job)).attempts[0]?.error).toMatch(/certificate/i);
    expect(receiver.received).toHaveLength(0);
  });
});
