import { expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { retryWait, WEBHOOK_ATTEMPTS } from "../../runtime/gateway/webhook-sender.ts";
import { signatureOf } from "../../runtime/gateway/webhook-signature.ts";

test("retryWait() grows from seconds to hours, and ends after the last attempt", () => {
  const waits = Array.from({ length: WEBHOOK_ATTEMPTS - 1 }, (_, index) => retryWait(index + 1, 0)!);
  expect(waits).toEqual([5, 30, 120, 600, 1800, 3600, 7200].map((seconds) => seconds * 1000));
  expect(retryWait(WEBHOOK_ATTEMPTS, 0)).toBeUndefined();
});

test("retryWait() waits up to a tenth more, so that not all come at once", () => {
  expect(retryWait(1, 0.5)).toBe(5250);
  expect(retryWait(1, 0.999)).toBe(5500);
});

test("signatureOf() gives the example of the Standard Webhooks specification", () => {
  const signature = signatureOf(
    "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    "msg_p5jXN8AQM9LWM0D4loKWxJek",
    1614265330,
    '{"test": 2432232314}',
  );
  expect(signature).toBe("v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
});

test("signatureOf() takes a secret without whsec_ as it is", () => {
  // HMAC-SHA256 with the key "sixteen letters!" over `a.1.ü` in UTF-8.
  expect(signatureOf("sixteen letters!", "a", 1, "ü")).toBe(
    "v1,JjWy/dU2WjBEe8KydIGz2XsjYmbP3xbjSo53u3TM0+U=",
  );
});

test("the snippet in docs/api.md verifies what signatureOf() signs, and nothing else", async () => {
  const docs = readFileSync(new URL("../../docs/api.md", import.meta.url), "utf8");
  const [, snippet] = /^```js\n(.*?)^```/ms.exec(docs)!;
  const directory = mkdtempSync(join(tmpdir(), "flurry-snippet-"));
  const path = join(directory, "verify.mjs");
  writeFileSync(path, snippet!);
  const { verify } = await import(pathToFileURL(path).href);
  rmSync(directory, { recursive: true });
  const now = Math.floor(Date.now() / 1000);
  for (const secret of ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "sixteen letters!"]) {
    const headers = (at: number, signature = signatureOf(secret, "msg_1", at, "body")) =>
      new Headers({ "webhook-id": "msg_1", "webhook-timestamp": String(at), "webhook-signature": signature });
    expect(verify(secret, headers(now), "body")).toBe(true);
    expect(verify(secret, headers(now), "another")).toBe(false);
    expect(verify("another secret of 16", headers(now), "body")).toBe(false);
    expect(verify(secret, headers(now - 600), "body")).toBe(false);
    expect(verify(secret, headers(now, "v1,"), "body")).toBe(false);
  }
});
