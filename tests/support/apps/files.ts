import render2 from "render2";
import { MemoryBucket } from "./memory-bucket.ts";

const bucket = new MemoryBucket({
  "index.html": { text: "<!doctype html><p>home ü</p>", contentType: "text/html; charset=utf-8" },
  "notes/one.txt": { text: "one\n", contentType: "text/plain", cacheControl: "max-age=60" },
  "notes/deep/two.json": { text: '{"two":2}', contentType: "application/json" },
  "notes/.hidden": { text: "not listed", contentType: "text/plain" },
  "bytes.bin": { bytes: Uint8Array.from({ length: 100_000 }, (_, i) => (i * 7) % 251) },
  "empty.txt": { text: "", contentType: "text/plain" },
  "404.html": { text: "<p>lost</p>", contentType: "text/html" },
});

const env = {
  R2_BUCKET: bucket,
  ALLOWED_ORIGINS: "*",
  // Without the cache of Workers, which Bun has none of.
  CACHE_CONTROL: "no-store",
  DIRECTORY_LISTING: true,
  HIDE_HIDDEN_FILES: true,
  NOTFOUND_FILE: "404.html",
};

Object.assign(globalThis, { caches: { default: undefined } });

type Handler = (request: Request, env: unknown, ctx: unknown) => Promise<Response>;

/** A file server for Workers, on a bucket in memory. */
export default { fetch: (request: Request) => (render2.fetch as unknown as Handler)(request, env, {}) };
