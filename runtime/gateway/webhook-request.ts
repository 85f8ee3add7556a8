import type { DueDelivery } from "../jobs/ports.ts";
import type { GuardedAddress } from "../net/address-guard.ts";
import { aborting, isConnectError, requestTo } from "../net/pinned-request.ts";
import type { WebhookGuard } from "./webhook-guard.ts";
import { signatureOf } from "./webhook-signature.ts";

/** How an attempt to deliver went. */
export interface WebhookAnswer {
  status: number;
  /** What the receiver asks to wait, in ms. */
  retryAfterMs?: number | undefined;
}

/**
 * Sends a delivery once. It connects to an address that the guard has just let pass, never to the name; it
 * follows no redirect and reads nothing of the answer but its head.
 *
 * @param options.timestamp - seconds since 1970
 * @param options.ca - further certificates to trust, in PEM
 * @throws FlurryError WEBHOOK_FORBIDDEN; errors of the resolver, the socket and of TLS; the signal's reason
 */
export async function sendWebhook(
  delivery: Pick<DueDelivery, "id" | "url" | "secret" | "body">,
  options: { guard: WebhookGuard; timestamp: number; signal: AbortSignal; ca?: string | undefined },
): Promise<WebhookAnswer> {
  const { guard, timestamp, signal, ca } = options;
  const { id, secret, body } = delivery;
  const url = new URL(delivery.url);
  const addresses = await aborting(guard.addresses(delivery.url), signal);
  const headers = {
    Host: url.host,
    "Content-Type": "application/json",
    "Content-Length": Buffer.byteLength(body),
    "User-Agent": "flurry-webhooks/1",
    "webhook-id": id,
    "webhook-timestamp": String(timestamp),
    ...(secret === undefined ? {} : { "webhook-signature": signatureOf(secret, id, timestamp, body) }),
  };
  let failure: unknown;
  for (const address of addresses) {
    try {
      return await post(url, address, { headers, body, signal, ca });
    } catch (error) {
      // Only what was never connected to has surely not seen the message.
      if (signal.aborted || !isConnectError(error)) throw error;
      failure = error;
    }
  }
  throw failure;
}

function post(
  url: URL,
  to: GuardedAddress,
  message: {
    headers: Record<string, string | number>;
    body: string;
    signal: AbortSignal;
    ca: string | undefined;
  },
): Promise<WebhookAnswer> {
  const { headers, body, signal, ca } = message;
  const { promise, resolve, reject } = Promise.withResolvers<WebhookAnswer>();
  const request = requestTo(url, to, { method: "POST", headers, signal, ca, maxHeaderSize: 16_384 });
  request.on("response", (response) => {
    const answer = {
      status: response.statusCode ?? 0,
      retryAfterMs: retryAfter(response.headers["retry-after"]),
    };
    response.on("error", reject);
    response.destroy();
    resolve(answer);
  });
  request.on("error", reject);
  request.end(body);
  return promise;
}

/** Seconds of a Retry-After header as ms. One with a date is left to the schedule. */
function retryAfter(header: string | undefined): number | undefined {
  return header !== undefined && /^\d{1,6}$/.test(header) ? Number(header) * 1000 : undefined;
}
