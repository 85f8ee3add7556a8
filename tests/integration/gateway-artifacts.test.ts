import { describe, expect, test } from "bun:test";
import { connect } from "node:net";
import type { Artifact, Page } from "../../runtime/api/mod.ts";
import { GatewaySandbox, jobOf, problemFrom } from "../support/gateway-sandbox.ts";

const TEXT = "0123456789";

/** A job whose only task has left these files. */
async function withFiles(files: Record<string, string>) {
  const gateway = await GatewaySandbox.open();
  const { id } = await gateway.submit(jobOf(1));
  const claim = await gateway.claim();
  const artifacts = [];
  for (const [n, [path, text]] of Object.entries(files).entries()) {
    const blob = `${id}/0/0-${claim.token}/${n}`;
    const content = (async function* () {
      yield new TextEncoder().encode(text);
    })();
    artifacts.push({ path, mode: 0o644, blob, ...(await gateway.context.store.blobs.put(blob, content)) });
  }
  await gateway.finish(claim, { artifacts });
  const url = (path: string) => `/v1/jobs/${id}/artifacts/0/${path}`;
  return { gateway, id, url, etag: `"${artifacts[0]!.sha256}"` };
}

describe("GET /v1/jobs/{id}/artifacts", () => {
  test("lists the files that tasks left, page by page", async () => {
    const { gateway, id } = await withFiles({ "a.txt": "a", "b/c.txt": "bc", d: "" });
    await using _ = gateway;
    const path = `/v1/jobs/${id}/artifacts`;
    const first = await gateway.json<Page<Artifact>>(`${path}?limit=2`);
    expect(first.items).toMatchObject([
      { task: 0, path: "a.txt", size: 1, mode: 0o644 },
      { task: 0, path: "b/c.txt", size: 2 },
    ]);
    const rest = await gateway.json<Page<Artifact>>(`${path}?limit=2&cursor=${first.next}`);
    expect(rest).toMatchObject({ items: [{ path: "d", size: 0 }] });
    expect(rest.next).toBeUndefined();
    expect((await gateway.json<Page<Artifact>>(`${path}?task=1`)).items).toEqual([]);
  });

  test("gives a file with its ETag, to HEAD without its content", async () => {
    const { gateway, url, etag } = await withFiles({ "dir/a b.txt": TEXT, empty: "" });
    await using _ = gateway;
    for (const method of ["GET", "HEAD"]) {
      const response = await gateway.fetch(url("dir/a%20b.txt"), { method });
      expect(response.status).toBe(200);
      expect(Object.fromEntries(response.headers)).toMatchObject({
        "content-type": "text/plain; charset=utf-8",
        etag,
        "accept-ranges": "bytes",
        "content-disposition": "inline; filename*=UTF-8''a%20b.txt",
      });
      if (method === "HEAD") expect(response.headers.get("content-length")).toBe("10");
      expect(await response.text()).toBe(method === "GET" ? TEXT : "");
    }
    // With its slash encoded it is the same path.
    expect(await (await gateway.fetch(url("dir%2Fa%20b.txt"))).text()).toBe(TEXT);
    const empty = await gateway.fetch(url("empty"));
    expect([empty.status, await empty.text()]).toEqual([200, ""]);
  });

  test("answers each range and each condition", async () => {
    const { gateway, url, etag } = await withFiles({ "a.txt": TEXT });
    await using _ = gateway;
    type Row = [headers: Record<string, string>, status: number, body: string, range?: string];
    const table: Row[] = [
      [{ range: "bytes=0-3" }, 206, "0123", "bytes 0-3/10"],
      [{ range: "bytes=7-" }, 206, "789", "bytes 7-9/10"],
      [{ range: "bytes=-2" }, 206, "89", "bytes 8-9/10"],
      [{ range: "bytes=8-100" }, 206, "89", "bytes 8-9/10"],
      [{ range: "bytes=0-1,4-5" }, 200, TEXT],
      [{ range: "bytes=5-4" }, 200, TEXT],
      [{ range: "nonsense" }, 200, TEXT],
      [{ range: "bytes=10-" }, 416, "", "bytes */10"],
      [{ range: "bytes=-0" }, 416, "", "bytes */10"],
      [{ range: "bytes=0-3", "if-range": etag }, 206, "0123", "bytes 0-3/10"],
      [{ range: "bytes=0-3", "if-range": '"other"' }, 200, TEXT],
      [{ range: "bytes=0-3", "if-range": `W/${etag}` }, 200, TEXT],
      [{ range: "bytes=99-", "if-range": '"other"' }, 200, TEXT],
      [{ "if-none-match": etag }, 304, ""],
      [{ "if-none-match": `"other", W/${etag}` }, 304, ""],
      [{ "if-none-match": "*" }, 304, ""],
      [{ "if-none-match": etag, range: "bytes=0-3" }, 304, ""],
      [{ "if-none-match": '"other"' }, 200, TEXT],
    ];
    for (const [headers, status, body, range] of table) {
      const response = await gateway.fetch(url("a.txt"), { headers });
      const seen = [JSON.stringify(headers), response.status, response.headers.get("content-range")];
      expect(seen).toEqual([JSON.stringify(headers), status, range ?? null]);
      if (status === 416) expect((await problemFrom(response)).code).toBe("RANGE_NOT_SATISFIABLE");
      else expect(await response.text()).toBe(body);
      expect(response.headers.get("etag")).toBe(etag);
    }
  });

  test("lets a browser run nothing of what a task left", async () => {
    const { gateway, url } = await withFiles({
      "a.html": "<script>",
      "a.svg": "<svg/>",
      "a.png": "x",
      'q"\r\n;.js': "x",
    });
    await using _ = gateway;
    const headersOf = async (path: string) => {
      const response = await gateway.fetch(url(path));
      await response.text();
      const { headers } = response;
      expect(headers.get("x-content-type-options")).toBe("nosniff");
      expect(headers.get("content-security-policy")).toContain("sandbox");
      return [headers.get("content-type"), headers.get("content-disposition")];
    };
    const binary = "application/octet-stream";
    expect(await headersOf("a.html")).toEqual([binary, "attachment; filename*=UTF-8''a.html"]);
    expect(await headersOf("a.svg")).toEqual([binary, "attachment; filename*=UTF-8''a.svg"]);
    expect(await headersOf("a.png")).toEqual(["image/png", "inline; filename*=UTF-8''a.png"]);
    expect(await headersOf(encodeURIComponent('q"\r\n;.js'))).toEqual([
      binary,
      "attachment; filename*=UTF-8''q%22%0D%0A%3B.js",
    ]);
  });

  test("no path leads out of what the task left", async () => {
    const { gateway, id } = await withFiles({ "a.txt": TEXT });
    await using _ = gateway;
    const attempts = [
      "../../../../../../etc/passwd",
      "..%2f..%2f..%2fetc%2fpasswd",
      "%2e%2e/%2e%2e/etc/passwd",
      "%2e%2e%2f%2e%2e%2fflurry.db",
      "..%252f..%252fetc%252fpasswd",
      "....//....//etc/passwd",
      "..\\..\\etc\\passwd",
      "..%5c..%5cetc%5cpasswd",
      "%c0%ae%c0%ae/etc/passwd",
      "a.txt%00.png",
      "%00",
      "/etc/passwd",
      "//etc/passwd",
      "%2fetc%2fpasswd",
      "./a.txt/..",
      "a.txt/",
      "a.txt%",
      "%ff%fe",
      "~root/.ssh/id_rsa",
      "x".repeat(5000),
    ];
    // Over a bare socket: fetch() would resolve `..` before it asks.
    for (const attempt of attempts) {
      const { status, body } = await bareGet(gateway.port, `/v1/jobs/${id}/artifacts/0/${attempt}`);
      expect([attempt, status === 404 || status === 400, body.includes("root:")]).toEqual([
        attempt,
        true,
        false,
      ]);
      expect(JSON.parse(body)).toMatchObject({
        status,
        code: expect.any(String),
        requestId: expect.any(String),
      });
    }
    for (const task of ["1", "999999"]) {
      expect(await gateway.problem(`/v1/jobs/${id}/artifacts/${task}/a.txt`)).toMatchObject({
        status: 404,
        code: "ARTIFACT_NOT_FOUND",
      });
    }
    for (const task of ["-1", "x", "..", "%2e%2e", "0%2f.."]) {
      const { status } = await bareGet(gateway.port, `/v1/jobs/${id}/artifacts/${task}/a.txt`);
      expect([task, status === 400 || status === 404]).toEqual([task, true]);
    }
  });

  test("a file that is there but short is broken off, not given as if it were whole", async () => {
    const { gateway, url } = await withFiles({ "a.txt": TEXT });
    await using _ = gateway;
    const { blobs } = gateway.context.store;
    const get = blobs.get.bind(blobs);
    blobs.get = (key) => get(key, { start: 0, end: 4 });
    const read = gateway.fetch(url("a.txt")).then((response) => response.text());
    expect(await read.catch(() => "broken off")).toBe("broken off");
  });
});

/** The answer to a path that is sent as it is. */
async function bareGet(port: number, path: string): Promise<{ status: number; body: string }> {
  const socket = connect(port, "127.0.0.1");
  socket.write(`GET ${path} HTTP/1.1\r\nHost: 127.0.0.1:${port}\r\nConnection: close\r\n\r\n`);
  let text = "";
  for await (const chunk of socket) text += chunk;
  const [head = "", body = ""] = text.split("\r\n\r\n");
  const chunked = /transfer-encoding: chunked/i.test(head);
  return {
    status: Number(head.split(" ")[1]),
    body: chunked ? body.replace(/(^|\r\n)[0-9a-f]+\r\n/g, "") : body,
  };
}
