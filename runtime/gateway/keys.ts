import { createHash, randomBytes, timingSafeEqual } from "node:crypto";

/** A key in parts: `flk_<id>_<secret>`. */
export interface KeyParts {
  id: string;
  secret: string;
}

/** A new key: what its owner gets once, and what is stored of it. */
export function newKey(): { id: string; key: string; hash: string } {
  const id = randomBytes(8).toString("hex");
  const secret = randomBytes(32).toString("base64url");
  return { id, key: `flk_${id}_${secret}`, hash: hashSecret(secret) };
}

/** Reads a key; undefined for what cannot be one. */
export function parseKey(key: string): KeyParts | undefined {
  const [, id, secret] = /^flk_([0-9a-f]{16})_([A-Za-z0-9_-]{43})$/.exec(key) ?? [];
  return id !== undefined && secret !== undefined ? { id, secret } : undefined;
}

/**
 * SHA-256 of a key's secret, in hex. A fast hash is right here: the secret is 256 random bits, so nobody
 * can try them all.
 */
export function hashSecret(secret: string): string {
  return createHash("sha256").update(secret).digest("hex");
}

/** Whether a secret has this hash; takes as long when there is none. */
export function secretMatches(secret: string, hash: string | undefined): boolean {
  const given = Buffer.from(hashSecret(secret), "hex");
  const stored = Buffer.from(hash ?? hashSecret(""), "hex");
  return timingSafeEqual(given, stored) && hash !== undefined;
}
