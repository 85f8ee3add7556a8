import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import type { WorkerClient } from "../../guest-agent/protocol/worker/mod.ts";
import { outboundGuard, outboundOf } from "../../runtime/workers/js/outbound.ts";
import { testCertificate } from "../support/gateway-certificate.ts";
import { OutboundSite } from "../support/outbound-site.ts";
import { eventually, textOf, WorkerHostUnderTest } from "../support/worker-process.ts";

/** Runs what it is sent, with `site` as the origin of the other server. */
const source = `
const AsyncFunction = (async () => {}).constructor;
globalThis.kept = { bunFetch: (...args) => Bun.fetch(...args) };
export default {
  async task({ code, site }) {
    try {
      return { value: await new AsyncFunction("site", code)(site) };
    } catch (error) {
      return { error: { name: error?.name, message: String(error?.message), code: error?.code, isTypeError: error instanceof TypeError } };
    }
  },
  fetch: async (request) => new Response(await (await fetch(request.headers.get("to"))).text()),
};
`;

const fork = { vm: { id: "v", index: 1, generation: 1 }, env: {}, secrets: {} };

let site: OutboundSite;
let host: WorkerHostUnderTest;
let client: WorkerClient;

/** As the guard of an operator who allows loopback and `*.test`. */
function handler(allow: readonly string[] = [site.host, "*.test", "localhost"]) {
  const resolve = async () => [{ address: "127.0.0.1", family: 4 }];
  const guard = outboundGuard({ allow: ["127.0.0.1", "a.test", "b.test", "hooks.test"], resolve });
  return outboundOf({ allow: [...allow, `a.test:${site.port}`, `b.test:${site.port}`], guard });
}

async function run<T = unknown>(code: string, over = client): Promise<T> {
  const answer = (await over.task({ code, site: `http://${site.host}` })) as { value?: T; error?: unknown };
  if (answer.error) throw Object.assign(new Error(JSON.stringify(answer.error)), answer.error);
  return answer.value as T;
}

async function failure(code: string, over = client): Promise<Record<string, unknown>> {
  const answer = (await over.task({ code, site: `http://${site.host}` })) as { error?: never };
  return answer.error ?? { none: answer };
}

/** A worker host of its own, as a fork. */
async function forked(options: Parameters<WorkerHostUnderTest["client"]>[0] = { outbound: handler() }) {
  const running = await WorkerHostUnderTest.running(source, options);
  await running.client.forked(fork);
  return running;
}

beforeAll(async () => {
  site = await OutboundSite.open();
  const running = await forked();
  host = running.host;
  client = running.client;
}, 60_000);
afterAll(async () => {
  await client[Symbol.asyncDispose]();
  await host[Symbol.asyncDispose]();
  await site[Symbol.asyncDispose]();
});

describe("a worker's fetch", () => {
  test("brings status, headers, address and body", async () => {
    const got = await run<Record<string, unknown>>(`
      const r = await fetch(site + "/cookies?q=1#part", { headers: { "x-own": "1" } });
      return { status: r.status, ok: r.ok, text: await r.text(), url: r.url, redirected: r.redirected, type: r.type,
        cookies: r.headers.getSetCookie(), caf: r.headers.get("x-caf"), own: r instanceof Response };`);
    expect(got).toEqual({
      ...{ status: 200, ok: true, text: "c", redirected: false, type: "basic", own: true },
      url: `http://${site.host}/cookies?q=1`,
      cookies: ["a=1", "b=2"],
      caf: "caf\u00e9",
    });
  });

  test("sends method, headers and a body of known length, whatever it was made of", async () => {
    const kinds: [string, Record<string, unknown>][] = [
      [`"text"`, { bytes: 4, text: "text", type: "text/plain;charset=UTF-8" }],
      [
        `new URLSearchParams({ a: "1" })`,
        { text: "a=1", type: "application/x-www-form-urlencoded;charset=UTF-8" },
      ],
      [`new Blob(["blob"], { type: "x/y" })`, { text: "blob", type: "x/y" }],
      [`new TextEncoder().encode("bytes")`, { text: "bytes" }],
      [`new Uint8Array(200_000).fill(65)`, { bytes: 200_000 }],
    ];
    for (const [body, expected] of kinds) {
      for (const how of [`fetch(site + "/echo", init)`, `fetch(new Request(site + "/echo", init))`]) {
        const got = await run<never>(`
          const init = { method: "PUT", headers: { "x-a": "b" }, body: ${body} };
          const e = await (await ${how}).json();
          return { ...e, type: e.headers["content-type"], length: e.headers["content-length"], a: e.headers["x-a"] };`);
        expect({ how, ...(got as object) }).toMatchObject({ ...expected, method: "PUT", a: "b" });
        expect(Number((got as { length: string }).length)).toBe((got as { bytes: number }).bytes);
      }
    }
    const form = await run<{ headers: Record<string, string>; text: string }>(`
      const body = new FormData(); body.append("a", "b"); body.append("f", new Blob(["file"]), "f.txt");
      return (await fetch(site + "/echo", { method: "POST", body })).json();`);
    expect(form.headers["content-type"]).toStartWith("multipart/form-data; boundary=");
    expect(Number(form.headers["content-length"])).toBe(form.text.length);
    const none = await run<{ headers: Record<string, string> }>(
      `return (await fetch(site + "/echo", { method: "POST" })).json()`,
    );
    expect(none.headers).toMatchObject({ "content-length": "0", host: site.host, accept: "*/*" });
  });

  test("streams a body of unknown length as it comes, in both directions", async () => {
    const got = await run<{ bytes: number; headers: Record<string, string> }>(`
      let left = 300;
      const chunk = new Uint8Array(100_000).fill(7);
      const body = new ReadableStream({ async pull(c) { if (left-- === 0) return c.close(); if (left % 50 === 0) await Bun.sleep(1); c.enqueue(chunk); } });
      return (await fetch(site + "/echo", { method: "POST", body, duplex: "half" })).json();`);
    expect(got.bytes).toBe(30_000_000);
    expect(got.headers["transfer-encoding"]).toBe("chunked");
    const down = await run<number>(`
      const r = await fetch(site + "/give?bytes=30000000");
      let bytes = 0;
      for await (const part of r.body) bytes += part.length;
      return bytes;`);
    expect(down).toBe(30_000_000);
  }, 60_000);

  test("does not send the rest of a body that the server has answered without", async () => {
    const got = await run<unknown>(`
      let pulled = 0, cancelled = false;
      const body = new ReadableStream({ async pull(c) { pulled++; await Bun.sleep(1); c.enqueue(new Uint8Array(60_000)); }, cancel() { cancelled = true; } });
      const r = await fetch(site + "/early", { method: "POST", body, duplex: "half" });
      const text = await r.text();
      await Bun.sleep(30);
      return { text, cancelled };`);
    expect(got).toEqual({ text: "not needed", cancelled: true });
  });

  test.each(["gzip", "br", "zstd", "deflate", "both"])(
    "undoes the encoding of /%s, and says so",
    async (path) => {
      const got = await run<unknown>(`
      const r = await fetch(site + "/${path}");
      return { text: await r.text(), encoding: r.headers.get("content-encoding"), length: r.headers.get("content-length") };`);
      expect(got).toEqual({ text: "the same text ".repeat(2000), encoding: null, length: null });
    },
  );

  test("leaves what it cannot decode, or shall not, and fails for what is none", async () => {
    const got = await run<unknown>(`
      const a = await fetch(site + "/unknown");
      const b = await fetch(site + "/gzip", { decompress: false });
      const bytes = await b.bytes();
      return [await a.text(), a.headers.get("content-encoding"), Bun.gunzipSync(bytes).length, b.headers.get("content-length") === String(bytes.length)];`);
    expect(got).toEqual(["cipher", "secret", 28_000, true]);
    expect(await failure(`return (await fetch(site + "/plain-lie")).text()`)).toHaveProperty("name");
  });

  test("has no body for HEAD, 204 and 304", async () => {
    const got = await run<unknown>(`
      const head = await fetch(site + "/gzip", { method: "HEAD" });
      const answers = [head, await fetch(site + "/status?code=204"), await fetch(site + "/status?code=304")];
      return Promise.all(answers.map(async (r) => [r.status, r.body === null, await r.text(), r.headers.has("content-length")]));`);
    expect(got).toEqual([
      [200, true, "", true],
      [204, true, "", false],
      [304, true, "", false],
    ]);
  });

  test("leaves data:, blob: and other local URLs to Bun, and refuses what is no URL as Bun does", async () => {
    const got = await run<unknown>(`
      const blob = URL.createObjectURL(new Blob(["b"]));
      await Bun.write("note.txt", "file");
      return Promise.all([fetch("data:text/plain,d"), fetch(blob), fetch("file://" + process.cwd() + "/note.txt")].map(async (r) => (await r).text()));`);
    expect(got).toEqual(["d", "b", "file"]);
    expect(await failure(`return fetch("/relative")`)).toMatchObject({ isTypeError: true });
    expect(await failure(`return fetch("http://a b/")`)).toMatchObject({ isTypeError: true });
  });

  test("is also Bun.fetch, sends credentials of a URL as a header, and refuses options of a connection", async () => {
    const got = await run<{ headers: Record<string, string> }>(
      `return (await kept.bunFetch(site.replace("//", "//u:p%40@") + "/echo")).json()`,
    );
    expect(got.headers.authorization).toBe(`Basic ${Buffer.from("u:p@").toString("base64")}`);
    expect(await failure(`return fetch(site, { proxy: "http://p" })`)).toMatchObject({ isTypeError: true });
  });

  test("cannot have another Host, or headers of the connection", async () => {
    const got = await run<{ headers: Record<string, string> }>(
      `return (await fetch(site + "/echo", { headers: { host: "bank.test", te: "x", upgrade: "h2c", "user-agent": "own" } })).json()`,
    );
    expect(got.headers).toMatchObject({ host: site.host, "user-agent": "own" });
    expect(Object.keys(got.headers)).not.toContainAnyValues(["te", "upgrade"]);
  });

  test("fails with a TypeError when the server cannot be reached, or breaks off", async () => {
    const closed = await OutboundSite.open();
    const at = closed.host;
    await closed[Symbol.asyncDispose]();
    await using other = await forked({ outbound: handler([at]) });
    expect(await failure(`return fetch("http://${at}/")`, other.client)).toMatchObject({
      isTypeError: true,
      code: "FAILED",
      message: expect.stringContaining(`http://${at}/`),
    });
    expect(await failure(`return (await fetch(site + "/cut")).text()`)).toMatchObject({ isTypeError: true });
  });

  test("sends exactly as much as a content-length says, or fails", async () => {
    const send = (length: number) => `
      const body = new ReadableStream({ async pull(c) { await Bun.sleep(2); c.enqueue(new TextEncoder().encode("12345")); c.close(); } });
      return (await fetch(site + "/echo", { method: "POST", body, duplex: "half", headers: { "content-length": "${length}" } })).json();`;
    expect(await run(send(5))).toMatchObject({ text: "12345", headers: { "content-length": "5" } });
    for (const length of [4, 6]) expect(await failure(send(length))).toMatchObject({ isTypeError: true });
  });

  test("goes to https with the host's certificates", async () => {
    await using secure = await OutboundSite.open({ secure: true });
    const resolve = async () => [{ address: "127.0.0.1", family: 4 }];
    const guard = outboundGuard({ allow: ["hooks.test", "other.test"], resolve });
    const allow = [`*.test:${secure.port}`];
    const code = (name: string) =>
      `return (await fetch("https://${name}:${secure.port}/echo", { method: "POST", body: "x" })).json()`;
    await using knows = await forked({ outbound: outboundOf({ allow, guard, ca: testCertificate }) });
    expect(await run(code("hooks.test"), knows.client)).toMatchObject({ text: "x" });
    expect(await failure(code("other.test"), knows.client)).toMatchObject({ isTypeError: true });
    await using doubts = await forked({ outbound: outboundOf({ allow, guard }) });
    expect(await failure(code("hooks.test"), doubts.client)).toMatchObject({ isTypeError: true });
  });
});

describe("redirects", () => {
  test("are followed, and the answer says from where it is", async () => {
    const got = await run<unknown>(`
      const r = await fetch(site + "/to?at=" + encodeURIComponent("/to?at=/echo"));
      return [r.url, r.redirected, r.clone().url, (await r.json()).method];`);
    expect(got).toEqual([`http://${site.host}/echo`, true, `http://${site.host}/echo`, "GET"]);
  });

  test("change method and body as the Fetch standard has it", async () => {
    for (const [code, method, text] of [
      [301, "GET", ""],
      [302, "GET", ""],
      [303, "GET", ""],
      [307, "POST", "body"],
      [308, "POST", "body"],
    ]) {
      const got = await run<{ headers: object }>(
        `return (await fetch(site + "/to?code=${code}&at=/echo", { method: "POST", body: "body" })).json()`,
      );
      expect({ code, ...got }).toMatchObject({ code, method, text });
      expect(Object.hasOwn(got.headers, "content-type")).toBe(method === "POST");
    }
    const long = `fetch(site + "/to?read&code=307&at=/echo", { method: "POST", body: new Uint8Array(400_000) })`;
    expect(await failure(`return ${long}`)).toMatchObject({ isTypeError: true });
  });

  test("are left to the worker, or refused, as it asks", async () => {
    const got = await run<unknown>(`
      const r = await fetch(site + "/to?at=/echo", { redirect: "manual" });
      return [r.status, r.headers.get("location"), r.redirected, await r.text()];`);
    expect(got).toEqual([302, "/echo", false, "moved"]);
    expect(await failure(`return fetch(site + "/to?at=/echo", { redirect: "error" })`)).toMatchObject({
      isTypeError: true,
      message: expect.stringContaining("redirect"),
    });
  });

  test("are at most twenty, and only to what the worker may reach", async () => {
    const before = site.requests;
    expect(await failure(`return fetch(site + "/loop?n=0")`)).toMatchObject({
      message: expect.stringContaining("20 redirects"),
    });
    expect(site.requests - before).toBe(21);
    for (const [at, message] of [
      ["http://169.254.169.254/latest", "169.254.169.254:80"],
      ["http://elsewhere.example/", "elsewhere.example:80"],
      ["file:///etc/passwd", "file:"],
      ["http://[::1]/", "[::1]:80"],
    ] as const) {
      const refused = await failure(`return fetch(site + "/to?at=${at}")`);
      expect(refused).toMatchObject({ isTypeError: true, code: "FORBIDDEN" });
      expect(refused.message).toContain(message);
    }
  });

  test("take no credentials to another origin", async () => {
    const headers = `{ authorization: "secret", cookie: "c=1", "x-other": "stays" }`;
    const to = (at: string) =>
      `(await (await fetch(site + "/to?at=${at}", { headers: ${headers} })).json()).headers`;
    const got = await run<Record<string, string>[]>(
      `return [${to("/echo")}, ${to(`http://a.test:${site.port}/echo`)}]`,
    );
    expect(got[0]).toMatchObject({ authorization: "secret", cookie: "c=1", "x-other": "stays" });
    expect(got[1]).toMatchObject({ host: `a.test:${site.port}`, "x-other": "stays" });
    expect(got[1]).not.toHaveProperty("authorization");
    expect(got[1]).not.toHaveProperty("cookie");
  });
});

describe("what may be reached", () => {
  test("is nothing before the fork, and nothing without the host's word", async () => {
    await using running = await WorkerHostUnderTest.running(source, { outbound: handler() });
    expect(await failure(`return fetch(site + "/echo")`, running.client)).toMatchObject({
      isTypeError: true,
      message: expect.stringContaining("no network before its fork"),
    });
    await using none = await forked({});
    expect(await failure(`return fetch(site + "/echo")`, none.client)).toMatchObject({
      isTypeError: true,
      code: "FORBIDDEN",
      message: expect.stringContaining(site.host),
    });
  });

  test("is what `allow` names, by host and port; the refusal says which entry is missing", async () => {
    const refused = await failure(`return fetch("https://api.example.com/x")`);
    expect(refused).toMatchObject({ isTypeError: true, code: "FORBIDDEN" });
    expect(refused.message).toContain("api.example.com:443");
    expect(refused.message).toContain('"allow"');
  });

  test("is no private address, whatever `allow` says and the name resolves to", async () => {
    const resolve = async () => [{ address: "127.0.0.1", family: 4 }];
    const allow = [`a.test:${site.port}`, site.host];
    await using strict = await forked({ outbound: outboundOf({ allow, guard: outboundGuard({ resolve }) }) });
    const before = site.requests;
    for (const host of allow) {
      expect(await failure(`return fetch("http://${host}/echo")`, strict.client)).toMatchObject({
        isTypeError: true,
        code: "FORBIDDEN",
        message: expect.stringContaining("no public address"),
      });
    }
    expect(site.requests).toBe(before);
  });
});

describe("outbound requests end", () => {
  test("by the worker's signal, before the answer, while it is read, and in the queue", async () => {
    const before = site.broken;
    const got = await run<unknown>(`
      const before = AbortSignal.abort(new Error("at once"));
      const soon = new AbortController();
      const later = new AbortController();
      const hanging = fetch(site + "/hang", { signal: soon.signal }).catch((e) => e.message);
      const reading = await fetch(site + "/head-then-hang", { signal: later.signal });
      setTimeout(() => { soon.abort(new Error("soon")); later.abort(new Error("later")); }, 20);
      const timed = await fetch(site + "/hang", { signal: AbortSignal.timeout(20) }).catch((e) => e.name);
      return [await fetch(site, { signal: before }).catch((e) => e.message), await hanging, await reading.text().catch((e) => e.message), timed];`);
    expect(got).toEqual(["at once", "soon", "later", "TimeoutError"]);
    await eventually(() => site.broken === before + 3 && site.connections === 0);
  });

  test("with the body that the worker cancels, or forgets", async () => {
    const before = site.broken;
    await run(`
      const r = await fetch(site + "/give?bytes=50000000");
      await r.body.cancel();
      for (let i = 0; i < 70; i++) await fetch(site + "/give?bytes=50000000");
      for (let i = 0; i < 20; i++) { Bun.gc(true); await Bun.sleep(10); }`);
    await eventually(() => site.broken > before + 40);
    expect(await run(`return (await fetch(site + "/slow")).text()`)).toBe("slow");
    await run(`for (let i = 0; i < 20; i++) { Bun.gc(true); await Bun.sleep(10); }`);
  }, 60_000);

  test("with the host's end of the channel", async () => {
    const other = await forked();
    const pending = other.client.task({ code: `await fetch(site + "/hang")`, site: `http://${site.host}` });
    const lost = pending.catch((error) => error.code);
    const before = site.broken;
    await eventually(() => site.connections > 0);
    await other.client[Symbol.asyncDispose]();
    expect(await lost).toBe("AGENT_CLOSED");
    await eventually(() => site.broken === before + 1 && site.connections === 0);
    await other.host[Symbol.asyncDispose]();
  });

  test("at a fork: the child waits for nothing that the parent had asked for, and asks anew", async () => {
    await using first = await forked();
    const begun = `
      const note = (e) => [e.name, e.message];
      const reading = await fetch(site + "/head-then-hang");
      kept.fates = [fetch(site + "/hang").then((r) => r.status, note), reading.text().catch(note)];
      for (let i = 0; i < 70; i++) kept.fates.push(fetch(site + "/hang").then((r) => r.status, note));
      await Bun.sleep(20);`;
    await run(begun, first.client);
    await using second = await first.host.client({ outbound: handler() });
    await second.forked({ ...fork, vm: { id: "w", index: 2, generation: 2 } });
    const fates = await run<[string, string][]>(`return Promise.all(kept.fates)`, second);
    expect(fates).toHaveLength(72);
    for (const [name, message] of fates) {
      expect(name).toBe("TypeError");
      expect(message).toContain("before this VM was forked");
    }
    expect(await run(`return (await fetch(site + "/slow")).text()`, second)).toBe("slow");
    await eventually(() => site.connections === 0);
  });

  test("before the VM is frozen: quiesce() is refused while one is under way", async () => {
    await using running = await forked();
    await run(
      `kept.stop = new AbortController(); fetch(site + "/hang", { signal: kept.stop.signal }).catch(() => {}); await Bun.sleep(10);`,
      running.client,
    );
    await expect(running.client.quiesce()).rejects.toMatchObject({ code: "AGENT_REFUSED", remote: "BUSY" });
    await run(`kept.stop.abort()`, running.client);
    await running.client.quiesce();
    // What a timer asks for in the quiet waits for the host's next word.
    await run(
      `setTimeout(() => { kept.late = fetch(site + "/slow").then((r) => r.text()); }, 20);`,
      running.client,
    );
    await running.client.quiesce();
    const before = site.requests;
    await Bun.sleep(60);
    expect(site.requests).toBe(before);
    expect(await run(`return kept.late`, running.client)).toBe("slow");
  });
});

test("an answer that is not read holds the server up, not memory; at most 64 are under way, the others wait", async () => {
  const rss = process.memoryUsage.rss();
  const guest = host.residentKiB;
  await run(`kept.r = await fetch(site + "/give?bytes=100000000"); await Bun.sleep(200);`);
  expect(site.given).toBeLessThan(16 << 20); // sockets' buffers among them
  expect(host.residentKiB - guest).toBeLessThan(48 * 1024);
  expect(process.memoryUsage.rss() - rss).toBeLessThan(64 << 20);
  await run(`await kept.r.body.cancel(); kept.r = undefined;`);
  await eventually(() => site.running === 0);
  site.most = 0;
  const got = await run<number>(`
    const all = Array.from({ length: 150 }, () => fetch(site + "/slow?ms=100").then((r) => r.text()));
    return (await Promise.all(all)).filter((text) => text === "slow").length;`);
  expect(got).toBe(150);
  expect(site.most).toBeLessThanOrEqual(64);
}, 60_000);

test("a request's own fetch works in its scope, and many at once do not mix", async () => {
  const answers = await Promise.all(
    Array.from({ length: 40 }, async (_, i) => {
      const to = `http://${site.host}/echo?n=${i}`;
      const response = await client.fetch({ method: "GET", url: "http://w/", headers: [["to", to]] });
      return JSON.parse(await textOf(response)).url;
    }),
  );
  expect(answers).toEqual(Array.from({ length: 40 }, (_, i) => `/echo?n=${i}`));
  expect(host.faults).toEqual([]);
}, 60_000);
