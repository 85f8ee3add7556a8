const text = new TextEncoder();

function streamed(...parts: string[]): ReadableStream<Uint8Array> {
  return new ReadableStream({
    async pull(controller) {
      await Bun.sleep(1);
      const part = parts.shift();
      if (part === undefined) controller.close();
      else controller.enqueue(text.encode(part));
    },
  });
}

const long = "0123456789".repeat(10_000);
const html = Object.assign(new String("<p>ü</p>"), { isEscaped: true }) as unknown as string;
class OwnResponse extends Response {}

/** Every kind of answer that a worker can make, each under a path of its own. */
const kinds: Record<string, (request: Request) => Response> = {
  "/text": () => new Response("hällo"),
  "/text-long": () => new Response(long),
  "/text-empty": () => new Response(""),
  "/text-typed": () => new Response("a,b", { headers: { "Content-Type": "text/csv" } }),
  "/text-own": () => new OwnResponse("own"),
  "/text-wrong-length": () => new Response("hello", { headers: { "content-length": "3" } }),
  "/text-surrogate": () => new Response("a\ud800b"),
  "/text-untyped": () => {
    const response = new Response("text");
    response.headers.delete("content-type");
    return response;
  },
  "/html": () => new Response(html, { headers: { "content-type": "text/html" } }),
  "/json": () => Response.json({ a: [1, "ü", null], b: undefined }),
  "/json-null": () => Response.json(null, { status: 201, headers: { "x-a": "1" } }),
  "/json-typed": () => Response.json([], { headers: { "content-type": "application/ld+json" } }),
  "/bytes": () => new Response(new Uint8Array([1, 2, 3])),
  "/bytes-empty": () => new Response(new Uint8Array(0)),
  "/buffer": () => new Response(new ArrayBuffer(300)),
  "/view": () => new Response(new DataView(new ArrayBuffer(300), 10, 20)),
  "/bytes-typed": () => new Response(new Uint8Array(300), { headers: { "content-type": "image/x" } }),
  "/bytes-again": () => {
    const response = new Response(new Uint8Array(300));
    return new Response(response.body, response);
  },
  "/json-again": () => {
    const response = Response.json({ long });
    return new Response(response.body, response);
  },
  "/json-clone": () => Response.json({ long }).clone(),
  "/json-read": () => {
    const response = Response.json({ long });
    return response.body ? response : Response.error();
  },
  "/blob": () => new Response(new Blob(["blob"], { type: "text/x" })),
  "/blob-typed": () =>
    new Response(new Blob(["blob"], { type: "text/x" }), { headers: { "Content-Type": "text/y" } }),
  "/blob-untyped": () => new Response(new Blob([new Uint8Array(300)])),
  "/parameters": () => new Response(new URLSearchParams({ a: "b c", d: "ü" })),
  "/stream": () => new Response(streamed(long, "middle", long)),
  "/stream-length": () =>
    new Response(streamed(long, long), { headers: { "content-length": "200000", "content-type": "text/z" } }),
  "/stream-wrong-length": () => new Response(streamed(long, "and"), { headers: { "content-length": "7" } }),
  "/request-body": (request) => new Response(request.body),
  "/null": () => new Response(null),
  "/null-404": () => new Response(null, { status: 404, headers: { "content-type": "text/plain" } }),
  "/null-length": () => new Response(null, { headers: { "content-length": "7" } }),
  "/204": () => new Response(null, { status: 204, headers: { "x-a": "1" } }),
  "/205": () => new Response(null, { status: 205 }),
  "/304": () => new Response(null, { status: 304, headers: { ETag: '"x"', "Content-Length": "9" } }),
  "/redirect": () => Response.redirect("https://example.com/?a=b%20c", 307),
  "/status": () => new Response("odd", { status: 299, statusText: "Odd" }),
  "/cookies": () => {
    const headers = new Headers([
      ["Set-Cookie", "a=1; Path=/; HttpOnly"],
      ["set-cookie", "b=2, 3; Expires=Thu, 01 Jan 2026 00:00:00 GMT"],
      ["Vary", "Origin"],
      ["vary", "Cookie"],
    ]);
    headers.append("Set-Cookie", "c=3");
    return new Response("cookies", { headers });
  },
  "/headers": () =>
    new Response("x", {
      headers: { "X-Empty": "", "x-latin": "caf\u00e9", "X-Spaces": "a  b", "Content-Encoding": "" },
    }),
  "/asked": (request) =>
    Response.json({
      method: request.method,
      url: request.url,
      headers: [...request.headers],
      hasBody: request.body !== null,
      redirect: request.redirect,
      credentials: request.credentials,
    }),
};

export default { fetch: (request: Request) => kinds[new URL(request.url).pathname]!(request) };

export const paths = Object.keys(kinds);
