import { createHmac } from "node:crypto";

/**
 * Signature of a message (Standard Webhooks 1.0, symmetric): `v1,` and the base64 of HMAC-SHA256 over
 * `id.timestamp.body`.
 *
 * @param secret - `whsec_` and the key in base64, or the key itself as text
 * @param timestamp - of the attempt, in seconds since 1970
 */
export function signatureOf(secret: string, id: string, timestamp: number, body: string): string {
  const mac = createHmac("sha256", keyOf(secret)).update(`${id}.${timestamp}.${body}`);
  return `v1,${mac.digest("base64")}`;
}

function keyOf(secret: string): Buffer {
  const encoded = /^whsec_([A-Za-z0-9+/]+={0,2})$/.exec(secret)?.[1];
  return encoded === undefined ? Buffer.from(secret) : Buffer.from(encoded, "base64");
}
