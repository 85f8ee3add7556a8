import { Database } from "bun:sqlite";
import nodeCrypto, {
  createECDH,
  generateKeyPairSync,
  generateKeySync,
  randomBytes,
  randomFillSync,
  randomInt,
  randomUUID,
} from "node:crypto";
import { promisify } from "node:util";

/** Draws from every generator that a worker has: in the parent, and then in each child. */
type Source = () => string | number | Promise<string>;

const hex = (bytes: ArrayBuffer | Uint8Array) => Buffer.from(bytes as Uint8Array).toString("hex");

// As libraries do it: many at once, given out one by one.
const pool = new Uint8Array(1024);
let used = pool.length;
function pooled(): string {
  if (used + 16 > pool.length) {
    crypto.getRandomValues(pool);
    used = 0;
  }
  used += 16;
  return hex(pool.subarray(used - 16, used));
}

// The array that was filled is gone; only what it was a part of is left.
const behind = Buffer.alloc(512);
crypto.getRandomValues(behind.subarray(0, 256));
const pooledBytes = randomBytes(4096);

const random = new Database(":memory:").query("SELECT hex(randomblob(8)) || random() AS value");

const filled = new Uint8Array(256);
randomFillSync(filled);

function hot(): number {
  let sum = 0;
  for (let i = 0; i < 1000; i++) sum += Math.random();
  return sum;
}

async function hmacKey(): Promise<string> {
  const key = await crypto.subtle.generateKey({ name: "HMAC", hash: "SHA-256" }, true, ["sign"]);
  return hex(await crypto.subtle.exportKey("raw", key));
}

const sources: Record<string, Source> = {
  "Math.random": () => Math.random(),
  "Math.random, compiled": hot,
  "crypto.randomUUID": () => crypto.randomUUID(),
  "crypto.getRandomValues": () => hex(crypto.getRandomValues(new Uint8Array(8))),
  "crypto.getRandomValues, 4 KiB": () => hex(crypto.getRandomValues(new Uint8Array(4096))),
  "crypto.subtle.generateKey": hmacKey,
  "node:crypto randomBytes": () => hex(randomBytes(8)),
  "node:crypto randomBytes, asynchronous": async () => hex(await promisify(randomBytes)(8)),
  "node:crypto randomUUID": () => randomUUID(),
  "node:crypto randomUUID, uncached": () => randomUUID({ disableEntropyCache: true }),
  "node:crypto randomInt": () => randomInt(2 ** 47),
  "node:crypto randomFillSync": () => hex(nodeCrypto.randomFillSync(new Uint8Array(8))),
  "node:crypto generateKeySync": () => hex(generateKeySync("aes", { length: 128 }).export()),
  "node:crypto Ed25519": () =>
    String(generateKeyPairSync("ed25519").publicKey.export({ format: "pem", type: "spki" })),
  "node:crypto ECDH": () => hex(createECDH("prime256v1").generateKeys()),
  "Bun.randomUUIDv7": () => Bun.randomUUIDv7(),
  "Bun.password, salt": () => Bun.password.hash("a", { algorithm: "bcrypt", cost: 4 }),
  "a library's pool": pooled,
  "bytes drawn in the parent": () => hex(pooledBytes),
  "an array filled in the parent": () => hex(filled),
  "a part of a buffer filled in the parent": () => hex(behind.subarray(0, 256)),
  "bun:sqlite random, randomblob": () => (random.get() as { value: string }).value,
};

async function draw(): Promise<Record<string, string>> {
  const drawn: Record<string, string> = {};
  for (const [name, source] of Object.entries(sources)) drawn[name] = String(await source());
  return drawn;
}

// Runs also while the parent is frozen, and before anything else of a child.
let ticked = 0;
let filledLast = "";
setInterval(() => {
  ticked = Math.random();
  for (let i = 0; i < 16; i++) filledLast = hex(crypto.getRandomValues(new Uint8Array(8)));
}, 2);

let inParent: Record<string, string> = {};

export default {
  async setup(): Promise<void> {
    for (let time = 0; time < 3; time++) inParent = await draw();
  },
  async fetch(): Promise<Response> {
    const inTimer = {
      "Math.random, in a timer": String(ticked),
      "crypto.getRandomValues, in a loop of a timer": filledLast,
    };
    return Response.json({ inParent, drawn: { ...(await draw()), ...inTimer } });
  },
};
