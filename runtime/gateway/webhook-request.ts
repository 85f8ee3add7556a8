import http from "node:http";
import https from "node:https";
import { isIP } from "node:net";
import type { DueDelivery } from "../jobs/ports.ts";
import { bareHost, type GuardedAddress, portOf, type WebhookGuard } from "./webhook-guard.ts";
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
  { address, family }: GuardedAddress,
  message: {
    headers: Record<string, string | number>;
    body: string;
    signal: AbortSignal;
    ca: string | undefined;
  },
): Promise<WebhookAnswer> {
  const { headers, body, signal, ca } = message;
  const { promise, resolve, reject } = Promise.withResolvers<WebhookAnswer>();
  const secure = url.protocol === "https:";
  const request = (secure ? https : http).request({
    method: "POST",
    host: address,
    family,
    port: portOf(url),
    path: `${url.pathname}${url.search}`,
    // The certificate has to be that of the name, though an address is connected to.
    ...(secure ? { ...(isIP(bareHost(url)) === 0 ? { servername: bareHost(url) } : {}), ca } : {}),
    headers,
    // A connection of its own: one that is kept could be to an address of before.
    agent: false,
    maxHeaderSize: 16_384,
    signal,
  });
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

function isConnectError(error: unknown): boolean {
  return error instanceof Error && "syscall" in error && error.syscall === "connect";
}

/** The resolver cannot be stopped; but its caller can. */
async function aborting<T>(promise: Promise<T>, signal: AbortSignal): Promise<T> {
  signal.throwIfAborted();
  const { promise: aborted, reject } = Promise.withResolvers<never>();
  const onAbort = () => reject(signal.reason);
  signal.addEventListener("abort", onAbort, { once: true });
  try {
    return await Promise.race([promise, aborted]);
  } finally {
    signal.removeEventListener("abort", onAbort);
  }
}
