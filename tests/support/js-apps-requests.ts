import { paths } from "./apps/answers.ts";
import type { HeaderLines, WireRequest } from "./http-exchange.ts";

/** Shorthand for one request; `Host` is added. */
export function ask(
  method: string,
  target: string,
  headers: Record<string, string> | HeaderLines = {},
  body?: Uint8Array | string,
): WireRequest {
  const lines = Array.isArray(headers) ? headers : Object.entries(headers);
  return { method, target, headers: [["Host", "apps.example:8080"], ...lines], body };
}

const json = { "Content-Type": "application/json" };
const form = { "Content-Type": "application/x-www-form-urlencoded" };
const multipart = { "Content-Type": "multipart/form-data; boundary=xXx" };
const bytes = Uint8Array.from({ length: 3000 }, (_, i) => (i * 11) % 256);
const parts = [
  ...["--xXx", 'Content-Disposition: form-data; name="name"', "", "wörd"],
  ...["--xXx", 'Content-Disposition: form-data; name="file"; filename="f.txt"', "Content-Type: text/plain"],
  ...["", "content", "--xXx--", ""],
].join("\r\n");

/** Of `@scalar/void-server`: what it was asked is its answer. */
export const echoRequests: WireRequest[] = [
  ask("GET", "/"),
  ask("HEAD", "/"),
  ask("GET", "/a/b%2Fc/%C3%BC?one=1&two=%20x&two=2&empty="),
  ask("GET", "/page.html?x=%3Cb%3E"),
  ask("HEAD", "/page.html"),
  ask("GET", "/data.xml"),
  ask("GET", "/data.json"),
  ask("GET", "/archive.zip"),
  ask("GET", "/by-type", { Accept: "text/html,application/xhtml+xml;q=0.9" }),
  ask("GET", "/by-type", { Accept: "application/xml" }),
  ask("GET", "/by-type", { Accept: "application/zip" }),
  ask("GET", "/headers", [
    ["X-Many", "1"],
    ["x-many", "2, 3"],
    ["Cookie", "a=1; b=%20two"],
    ["Cookie", "c=3"],
    ["User-Agent", "tests/1"],
    ["X-Latin", "caf\xe9"],
    ["X-Empty", ""],
    ["Authorization", "Basic dXNlcjpwYXNz"],
    ["Forwarded", "for=192.0.2.1"],
    ["Accept-Encoding", "gzip, br"],
  ]),
  ask("OPTIONS", "/anything", { Origin: "https://o.example", "Access-Control-Request-Method": "PUT" }),
  ask("GET", "/cors", { Origin: "https://o.example" }),
  ask("POST", "/post", json, '{"a":[1,{"b":"ü"}]}'),
  ask("POST", "/post", json, "{not json"),
  ask("POST", "/post", form, "a=1&b=two+words&b=3"),
  ask("POST", "/post", multipart, parts),
  ask("POST", "/post", { "Content-Type": "application/octet-stream" }, bytes),
  ask("POST", "/post.zip", { "Content-Type": "text/plain" }, "text ü"),
  ask("POST", "/empty", {}, ""),
  ask("POST", "/big", { "Content-Type": "text/plain" }, "0123456789".repeat(30_000)),
  ask("PUT", "/put", json, "{}"),
  ask("PATCH", "/patch", { "Content-Type": "text/plain" }, "part"),
  ask("DELETE", "/delete/7"),
  ask("DELETE", "/delete/8", json, '{"why":1}'),
  ask("GET", "/204"),
  ask("HEAD", "/204"),
  ask("POST", "/204", {}, "dropped"),
  ...[400, 401, 404, 405, 418, 429, 451, 500, 503, 511].map((status) => ask("GET", `/${status}`)),
  ask("HEAD", "/404"),
];

const task = { name: "n", slug: "s", description: "d", completed: true, due_date: "2025-01-05T00:00:00Z" };

/** Of Cloudflare's OpenAPI application on itty-router. */
export const tasksRequests: WireRequest[] = [
  ask("GET", "/"),
  ask("HEAD", "/"),
  ask("GET", "/redocs"),
  ask("GET", "/openapi.json"),
  ask("GET", "/openapi.yaml"),
  ask("GET", "/api/tasks"),
  ask("GET", "/api/tasks/?page=2&isCompleted=true"),
  ask("GET", "/api/tasks/?page=no"),
  ask("HEAD", "/api/tasks"),
  ask("POST", "/api/tasks", json, JSON.stringify(task)),
  ask("POST", "/api/tasks/", json, JSON.stringify({ ...task, description: undefined })),
  ask("POST", "/api/tasks", json, JSON.stringify({ name: 1 })),
  ask("POST", "/api/tasks", json, "[]"),
  ask("GET", "/api/tasks/s-1/"),
  ask("GET", "/api/tasks/%C3%BC"),
  ask("DELETE", "/api/tasks/s-1"),
  ask("PUT", "/api/tasks/s-1", json, "{}"),
  ask("OPTIONS", "/api/tasks"),
  ask("GET", "/nowhere"),
  ask("HEAD", "/nowhere"),
];

/** Of Cloudflare's example with several handlers, one of which is a router of itty-router. */
export const commonRequests: WireRequest[] = [
  ask("GET", "/"),
  ask("HEAD", "/"),
  ask("GET", "/redirect"),
  ask("HEAD", "/redirect"),
  ask("GET", "/redirect?redirectUrl=https://example.com/a%20b?c=d"),
  ask("HEAD", "/redirect?redirectUrl=https://example.com/"),
  ask("GET", "/proxy"),
  ask("GET", "/api/todos"),
  ask("HEAD", "/api/todos"),
  ask("GET", "/api/todos/17"),
  ask("GET", "/api/todos/a%2Fb"),
  ask("POST", "/api/todos", json, '{"do":["this","ü"]}'),
  ask("PUT", "/api/todos", json, "{}"),
  ask("GET", "/api/nowhere"),
  ask("GET", "/other?query"),
];

const tag = '"4f43c2e5cd97be3a0b5c4e2d5c2c2e1d"';

/** Of `render2`: a file server. */
export const filesRequests: WireRequest[] = [
  ask("GET", "/"),
  ask("HEAD", "/"),
  ask("GET", "/index.html"),
  ask("HEAD", "/index.html"),
  ask("GET", "/notes/"),
  ask("HEAD", "/notes/"),
  ask("GET", "/notes/deep/two.json"),
  ask("GET", "/notes/one.txt", { "Accept-Encoding": "gzip" }),
  ask("GET", "/bytes.bin"),
  ask("HEAD", "/bytes.bin"),
  ask("GET", "/bytes.bin", { Range: "bytes=0-9" }),
  ask("GET", "/bytes.bin", { Range: "bytes=99990-" }),
  ask("GET", "/bytes.bin", { Range: "bytes=-5" }),
  ask("GET", "/bytes.bin", { Range: "bytes=10-70000" }),
  ask("GET", "/bytes.bin", { Range: "bytes=200000-" }),
  ask("GET", "/bytes.bin", { Range: "bytes=0-1,5-6" }),
  ask("GET", "/bytes.bin", { Range: "bytes=0-9", "If-Range": tag }),
  ask("GET", "/index.html", { "If-None-Match": tag }),
  ask("GET", "/notes/one.txt", { "If-None-Match": '"5bbf5a52328e7439ae6e719dfe712200"' }),
  ask("GET", "/notes/one.txt", { "If-Match": tag }),
  ask("GET", "/notes/one.txt", { "If-Modified-Since": "Sat, 03 Jan 2026 00:00:00 GMT" }),
  ask("GET", "/notes/one.txt", { "If-Modified-Since": "Thu, 01 Jan 2026 00:00:00 GMT" }),
  ask("GET", "/notes/one.txt", { "If-Unmodified-Since": "Thu, 01 Jan 2026 00:00:00 GMT" }),
  ask("GET", "/empty.txt"),
  ask("HEAD", "/empty.txt"),
  ask("GET", "/lost/file"),
  ask("HEAD", "/lost/file"),
  ask("OPTIONS", "/index.html"),
  ask("POST", "/index.html", {}, "no"),
  ask("DELETE", "/index.html"),
];

/** Of `@octokit/oauth-app`, as far as it asks GitHub nothing. */
export const loginRequests: WireRequest[] = [
  ask("GET", "/api/github/oauth/login?state=s1"),
  ask("GET", "/api/github/oauth/login?state=s2&scopes=repo,user&allowSignup=false"),
  ask("GET", "/api/github/oauth/login?state=s3&redirectUrl=https://example.com/back%3Fa=1"),
  ask("HEAD", "/api/github/oauth/login?state=s1"),
  ask("OPTIONS", "/api/github/oauth/token"),
  ask("GET", "/api/github/oauth/callback"),
  ask("GET", "/api/github/oauth/callback?error=denied&error_description=by+%C3%BC"),
  ask("POST", "/api/github/oauth/token", json, "{}"),
  ask("POST", "/api/github/oauth/token", json, "{broken"),
  ask("GET", "/api/github/oauth/token"),
  ask("PATCH", "/api/github/oauth/token"),
  ask("PATCH", "/api/github/oauth/refresh-token", { ...json, Authorization: "token t" }, "{}"),
  ask("POST", "/api/github/oauth/token/scoped", json, "{}"),
  ask("DELETE", "/api/github/oauth/token"),
  ask("DELETE", "/api/github/oauth/grant"),
  ask("GET", "/api/github/oauth/unknown?x=1"),
  ask("PUT", "/api/github/oauth/token", json, "{}"),
  ask("GET", "/elsewhere"),
];

/** Of our own module that makes every kind of answer. */
export const answersRequests: WireRequest[] = [
  ...paths.flatMap((path) => ["GET", "HEAD"].map((method) => ask(method, path))),
  ask("POST", "/request-body", { "Content-Type": "text/plain" }, "0123456789".repeat(30_000)),
  ask("POST", "/request-body", {}, ""),
  ask("PUT", "/asked?a=b#c", { "X-A": "1", Accept: "*/*", Cookie: "a=b" }, "body"),
  ask("DELETE", "/asked"),
  ask("OPTIONS", "/asked", { Origin: "https://o.example" }),
  ask("GET", "/asked?%20=%2F&a=%FF"),
];
