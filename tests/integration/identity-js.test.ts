import { expect, test } from "bun:test";
import { benchIdentity } from "../../bench/identity.ts";
import { flurryHome } from "../../runtime/home.ts";
import { Host } from "../../runtime/vm/host.ts";
import { JsChild } from "../../runtime/workers/js/js-child.ts";
import { jsImage } from "../../runtime/workers/js/js-image.ts";
import { openJsParent } from "../../runtime/workers/js/js-parent.ts";
import { rejection } from "../support/agent-peer.ts";
import { TEST_MS } from "../support/vm.ts";
import { homeWithImages } from "../support/workers-runtime.ts";

const CHILDREN = 64;
/** Half a minute of work on two idle cores, with each child a VM that is forked and asked. */
const MATRIX_MS = 3 * TEST_MS;

test(
  `${CHILDREN} children of a JS worker have no random number and no name in common, nor has their parent`,
  async () => {
    using home = await homeWithImages();
    await using host = await Host.open({ home: home.path });
    const { sources, identifyMs } = await benchIdentity({ host, n: CHILDREN, memMiB: 256 });
    expect(sources.filter(({ collisions }) => collisions > 0)).toEqual([]);
    for (const { source, draws } of sources) expect([source, draws]).toEqual([source, expect.any(Number)]);
    expect(sources.length).toBeGreaterThan(25);
    for (const { draws } of sources) expect(draws).toBeGreaterThanOrEqual(CHILDREN);
    const { kernel, hooks } = identifyMs;
    process.stderr.write(`identity: ${kernel.p50} ms of the kernel, ${hooks.p50} ms of the worker\n`);
  },
  MATRIX_MS,
);

/** Makes keys without end; each with a number that is drawn when it is there. A thread is the child's own. */
const KEYS = `
import { generateKeyPair, randomBytes } from "node:crypto";
import { promisify } from "node:util";
const pair = promisify(generateKeyPair);
const makers = {
  ed25519: async () => (await pair("ed25519")).publicKey.export({ format: "pem", type: "spki" }),
  bytes: async () => (await promisify(randomBytes)(16)).toString("hex"),
  salt: async () => await Bun.password.hash("a", { algorithm: "bcrypt", cost: 4 }),
};
const made = [];
async function make(name) {
  for (let n = 0; ; n++) {
    const key = await makers[name]();
    made.push({ n: name + n, key, stamp: crypto.randomUUID() });
    if (made.length > 20000) made.splice(0, 10000);
    await new Promise(setImmediate);
  }
}
let thread;
export default {
  setup() { for (const name of Object.keys(makers)) void make(name); },
  async onFork() {
    const worker = new Worker("data:text/javascript,postMessage(Math.random())");
    thread = await new Promise((resolve) => { worker.onmessage = (event) => resolve(event.data); });
  },
  fetch: () => Response.json({ made: made.slice(-5000), thread }),
};`;

interface Made {
  made: { n: string; key: string; stamp: string }[];
  thread: number;
}

test(
  "keys that were being made at the freeze, and threads of children, are each child's own",
  async () => {
    using home = await homeWithImages();
    await using host = await Host.open({ home: home.path });
    const bundle = { code: KEYS, bytes: KEYS.length, hash: "keys" };
    const image = await jsImage({ home: flurryHome() });
    const { parent } = await openJsParent({ host, image, name: "keys", bundle, memMiB: 256 });
    await using _parent = parent;
    const seen: Made[] = [];
    for (const index of [1, 2]) {
      await using child = await JsChild.fork(parent, {
        ...{ index, name: "keys", env: {}, secrets: {}, output: {}, signal: new AbortController().signal },
      });
      const answer = await child.worker.fetch({ method: "GET", url: "http://w/" });
      seen.push(JSON.parse(Buffer.concat(await Array.fromAsync(answer.body)).toString()));
    }
    const [first, second] = seen as [Made, Made];
    expect(first.thread).not.toBe(second.thread);
    // What has another stamp came after the fork.
    const both = first.made.flatMap((one) =>
      second.made.filter(({ n }) => n === one.n).map((other) => [one, other] as const),
    );
    const after = both.filter(([one, other]) => one.stamp !== other.stamp);
    expect(new Set(after.map(([one]) => one.n.replace(/\d+$/, ""))).size).toBe(3);
    expect(after.filter(([one, other]) => one.key === other.key)).toEqual([]);
    // And there was something before, for all of them alike.
    expect(both.length).toBeGreaterThan(after.length);
  },
  TEST_MS,
);

test(
  "a worker that has started threads in its parent does not load, and is told where to start them",
  async () => {
    using home = await homeWithImages();
    await using host = await Host.open({ home: home.path });
    const code = `const thread = new Worker(URL.createObjectURL(new Blob(["setInterval(() => {}, 1000)"])));
      export default { fetch: () => new Response() };`;
    const bundle = { code, bytes: code.length, hash: "threads" };
    const image = await jsImage({ home: flurryHome() });
    const error = await rejection(openJsParent({ host, image, name: "threads", bundle, memMiB: 256 }));
    expect(error).toMatchObject({ code: "TASK_FAILED" });
    expect(error.message).toContain(
      "the worker has 1 threads, which cannot be forked: start them in onFork()",
    );
  },
  TEST_MS,
);
