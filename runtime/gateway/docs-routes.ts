import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { OpenAPIHono } from "@hono/zod-openapi";
import type { Context } from "hono";
import type { GatewayEnv } from "./context.ts";

interface Asset {
  body: string | Uint8Array<ArrayBuffer>;
  type: string;
  etag: string;
}

/** Files of swagger-ui-dist that the page loads, and their media types. */
const SHIPPED: Readonly<Record<string, string>> = {
  "swagger-ui.css": "text/css; charset=utf-8",
  "swagger-ui-bundle.js": "text/javascript; charset=utf-8",
  "favicon-32x32.png": "image/png",
};

/** Nothing from elsewhere, and no script but those files. */
const POLICY = [
  "default-src 'none'",
  "script-src 'self'",
  "style-src 'self'",
  "img-src 'self' data:",
  "connect-src 'self'",
  "base-uri 'none'",
  "form-action 'none'",
  "frame-ancestors 'none'",
].join("; ");

// Links are relative: a proxy may serve the gateway below a path of its own.
const PAGE = `<!doctype html>
<html lang="en">
  <head>
    <meta charset="utf-8">
    <meta name="viewport" content="width=device-width">
    <title>Flurry: API</title>
    <link rel="stylesheet" href="docs/swagger-ui.css">
    <link rel="stylesheet" href="docs/page.css">
    <link rel="icon" type="image/png" href="docs/favicon-32x32.png">
  </head>
  <body>
    <div id="docs"></div>
    <noscript>This page needs JavaScript; <a href="openapi.json">openapi.json</a> has all of it.</noscript>
    <script src="docs/swagger-ui-bundle.js"></script>
    <script src="docs/start.js"></script>
  </body>
</html>
`;

// Without validatorUrl the page would show a badge of a service elsewhere.
const START = `SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#docs",
  deepLinking: true,
  displayRequestDuration: true,
  validatorUrl: null,
});
`;

const STYLE = `/* On a phone wide tables are scrolled, not the page with them. */
.swagger-ui .responses-inner,
.swagger-ui .table-container {
  overflow-x: auto;
}
`;

/** The page at /docs: Swagger UI of what /openapi.json says. It needs nothing from elsewhere. */
export function docsRoutes(): OpenAPIHono<GatewayEnv> {
  const app = new OpenAPIHono<GatewayEnv>();
  const page = assetOf(PAGE, "text/html; charset=utf-8");
  const start = assetOf(START, "text/javascript; charset=utf-8");
  const style = assetOf(STYLE, "text/css; charset=utf-8");
  const shipped = new Map<string, Promise<Asset>>();

  app.get("/docs", (c) => answer(c, page));
  app.get("/docs/", (c) => c.redirect("../docs", 308));
  app.get("/docs/start.js", (c) => answer(c, start));
  app.get("/docs/page.css", (c) => answer(c, style));
  for (const [file, type] of Object.entries(SHIPPED)) {
    app.get(`/docs/${file}`, async (c) => {
      const asset = shipped.get(file) ?? load(file, type);
      shipped.set(file, asset);
      return answer(c, await asset);
    });
  }
  return app;
}

async function load(file: string, type: string): Promise<Asset> {
  const require = createRequire(import.meta.url);
  const directory = dirname(require.resolve("swagger-ui-dist/package.json"));
  return assetOf(new Uint8Array(await readFile(join(directory, file))), type);
}

function assetOf(body: string | Uint8Array<ArrayBuffer>, type: string): Asset {
  const hash = createHash("sha256").update(body).digest("base64url");
  return { body, type, etag: `"${hash}"` };
}

/** Browsers keep it, and ask each time whether it is still the same. */
function answer(c: Context<GatewayEnv>, { body, type, etag }: Asset): Response {
  const headers = {
    "Content-Type": type,
    "Content-Security-Policy": POLICY,
    "Cache-Control": "no-cache",
    ETag: etag,
  };
  const known = c.req
    .header("if-none-match")
    ?.split(",")
    .some((each) => each.trim().replace(/^W\//, "") === etag);
  return known ? c.body(null, 304, headers) : c.body(body, 200, headers);
}
