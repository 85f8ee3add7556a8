import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { bundleWorker } from "../../guest-agent/worker-host/bundle.ts";
import type { Parent } from "../../runtime/fork/parent.ts";
import { flurryHome } from "../../runtime/home.ts";
import { Host } from "../../runtime/vm/host.ts";
import { JsChild } from "../../runtime/workers/js/js-child.ts";
import { jsImage } from "../../runtime/workers/js/js-image.ts";
import { openJsParent } from "../../runtime/workers/js/js-parent.ts";
import { collisions } from "../support/collisions.ts";
import { SETUP_MS, TEST_MS, type TemporaryDirectory } from "../support/vm.ts";
import { homeWithImages } from "../support/workers-runtime.ts";

/** As many as are compared, two at a time. */
const CHILDREN = 64;

/** Draws from everything in the parent, and then from the same in a child, first of all in a timer. */
const SOURCE = `
import nodeCrypto, { createECDH, generateKeyPairSync, generateKeySync, randomBytes, randomFillSync, randomInt, randomUUID } from "node:crypto";
import { promisify } from "node:util";
import { createContext, runInContext } from "node:vm";

const hex = (bytes) => Buffer.from(bytes).toString("hex");
const pool = new Uint8Array(1024);
let used = pool.length;
function pooled() {
  if (used + 16 > pool.length) { crypto.getRandomValues(pool); used = 0; }
  return hex(pool.subarray(used, used += 16));
}
const filled = new Uint8Array(256);
randomFillSync(filled);
function hot() { let sum = 0; for (let i = 0; i < 1000; i++) sum += Math.random(); return sum; }
const sources = {
  "Math.random": () => Math.random(),
  "Math.random, compiled": hot,
  "crypto.randomUUID": () => crypto.randomUUID(),
  "crypto.getRandomValues": () => hex(crypto.getRandomValues(new Uint8Array(8))),
  "crypto.getRandomValues, 4 KiB": () => hex(crypto.getRandomValues(new Uint8Array(4096))),
  "crypto.subtle.generateKey": async () => hex(await crypto.subtle.exportKey("raw",
    await crypto.subtle.generateKey({ name: "HMAC", hash: "SHA-256" }, true, ["sign"]))),
  "node:crypto randomBytes": () => hex(randomBytes(8)),
  "node:crypto randomBytes, asynchronous": async () => hex(await promisify(randomBytes)(8)),
  "node:crypto randomUUID": () => randomUUID(),
  "node:crypto randomUUID, uncached": () => randomUUID({ disableEntropyCache: true }),
  "node:crypto randomInt": () => randomInt(2 ** 47),
  "node:crypto randomFillSync": () => hex(nodeCrypto.randomFillSync(new Uint8Array(8))),
  "node:crypto generateKeySync": () => hex(generateKeySync("aes", { length: 128 }).export()),
  "node:crypto Ed25519": () => generateKeyPairSync("ed25519").publicKey.export({ format: "pem", type: "spki" }),
  "node:crypto ECDH": () => { const key = createECDH("prime256v1"); return hex(key.generateKeys()); },
  "Bun.randomUUIDv7": () => Bun.randomUUIDv7(),
  "Bun.password, salt": async () => await Bun.password.hash("a", { algorithm: "bcrypt", cost: 4 }),
  "a library's pool": pooled,
  "an array that was filled in the parent": () => hex(filled),
};
async function draw() {
  const drawn = {};
  for (const [name, source] of Object.entries(sources)) drawn[name] = String(await source());
  return drawn;
}
let first;
let ticks = [];
setInterval(() => { first ??= undefined; ticks.push(Math.random()); if (ticks.length > 20) ticks.shift(); }, 2);
let inParent;
export default {
  async setup() { for (let i = 0; i < 3; i++) inParent = await draw(); },
  async fetch(request, env, ctx) {
    const at = Date.now();
    return Response.json({ at, vm: ctx.vm.id, timers: ticks.slice(-1), inParent, drawn: await draw() });
  },
};`;

interface Answer {
  at: number;
  vm: string;
  timers: number[];
  inParent: Record<string, string>;
  drawn: Record<string, string>;
}

let home: TemporaryDirectory;
let host: Host;
let parent: Parent;

beforeAll(async () => {
  home = await homeWithImages();
  host = await Host.open({ home: home.path });
  const directory = mkdtempSync(join(home.path, "worker-"));
  writeFileSync(join(directory, "worker.ts"), SOURCE);
  const bundle = await bundleWorker(join(directory, "worker.ts"));
  rmSync(directory, { recursive: true, force: true });
  const image = await jsImage({ home: flurryHome() });
  ({ parent } = await openJsParent({ host, image, name: "draws", bundle, memMiB: 256 }));
}, SETUP_MS);

afterAll(async () => {
  await parent[Symbol.asyncDispose]();
  await host[Symbol.asyncDispose]();
  home[Symbol.dispose]();
}, TEST_MS);

async function answerOf(index: number): Promise<Answer> {
  const signal = new AbortController().signal;
  await using child = await JsChild.fork(parent, {
    ...{ index, name: "draws", env: {}, secrets: {}, output: {}, signal },
  });
  const { body } = await child.worker.fetch({ method: "GET", url: "http://worker/" });
  return JSON.parse(Buffer.concat(await Array.fromAsync(body)).toString());
}

describe("children of a JS worker", () => {
  test(
    `draw different random numbers from every generator, ${CHILDREN} of them`,
    async () => {
      const answers: Answer[] = [];
      let next = 1;
      const lane = async () => {
        while (next <= CHILDREN) answers.push(await answerOf(next++));
      };
      await Promise.all([lane(), lane()]);
      expect(answers.length).toBe(CHILDREN);
      const rows = answers.map(({ drawn, timers, vm }) => ({ ...drawn, "a timer": String(timers[0]), vm }));
      // What the parent has drawn no child draws again.
      expect(collisions([...rows, answers[0]!.inParent])).toEqual({});
      for (const { at } of answers) expect(Math.abs(at - Date.now())).toBeLessThan(TEST_MS);
    },
    TEST_MS,
  );
});
