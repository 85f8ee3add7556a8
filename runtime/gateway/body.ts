import type { MiddlewareHandler } from "hono";
import { createMiddleware } from "hono/factory";
import { FlurryError } from "../../errors/errors.ts";
import type { GatewayEnv } from "./context.ts";

/** Deepest nesting of a JSON body: what is stored is written again by a recursive writer. */
const MAX_DEPTH = 100;

const JSON_TYPE = /^application\/([\w.-]+\+)?json$/;

/** The essence of a Content-Type header: in lower case, without parameters. "" without a header. */
export function mediaType(header: string | undefined): string {
  return (header ?? "").split(";")[0]!.trim().toLowerCase();
}

/**
 * Reads a request's JSON body, at most `limit` bytes of it, before the route's schema sees it; it stays
 * to be read with `c.req.text()` and `c.req.json()`. Bodies of other media types are left to the route.
 *
 * @throws FlurryError BODY_TOO_LARGE, MEDIA_TYPE_UNSUPPORTED, BAD_ARGUMENT when it is no JSON in UTF-8
 */
export function jsonBodies(limit: number): MiddlewareHandler<GatewayEnv> {
  return createMiddleware<GatewayEnv>(async (c, next) => {
    const header = c.req.header("content-type");
    if (c.req.raw.body === null || !JSON_TYPE.test(mediaType(header))) return next();
    refuseEncodings(c.req.header("content-encoding"), header);
    const text = await readText(c.req.raw, limit);
    const value = parseJson(text, "The body");
    // Read and checked once: hono would do both again for each who asks.
    c.req.text = () => Promise.resolve(text);
    c.req.json = <T>() => Promise.resolve(value as T);
    return next();
  });
}

/** @throws FlurryError MEDIA_TYPE_UNSUPPORTED when a body is not plain UTF-8 */
export function refuseEncodings(contentEncoding: string | undefined, contentType: string | undefined): void {
  if (contentEncoding !== undefined && contentEncoding.toLowerCase() !== "identity") {
    throw new FlurryError(
      "MEDIA_TYPE_UNSUPPORTED",
      `The encoding "${contentEncoding.slice(0, 50)}" is not taken`,
      {
        hint: "send the body as it is",
      },
    );
  }
  const charset = /;\s*charset\s*=\s*"?([^";\s]+)/i.exec(contentType ?? "")?.[1];
  if (charset !== undefined && !/^utf-?8$/i.test(charset)) {
    throw new FlurryError("MEDIA_TYPE_UNSUPPORTED", `The charset "${charset.slice(0, 50)}" is not taken`, {
      hint: "send UTF-8",
    });
  }
}

/**
 * Parses JSON from outside.
 *
 * @param what - names it in the error
 * @throws FlurryError BAD_ARGUMENT
 */
export function parseJson(text: string, what: string): unknown {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw new FlurryError("BAD_ARGUMENT", `${what} is no JSON: ${reasonOf(cause)}`, { cause });
  }
  if (isDeeper(value, MAX_DEPTH)) {
    throw new FlurryError("BAD_ARGUMENT", `${what} is nested more than ${MAX_DEPTH} deep`);
  }
  return value;
}

/** @throws FlurryError BODY_TOO_LARGE */
export function tooLarge(limit: number): FlurryError {
  return new FlurryError("BODY_TOO_LARGE", `The body has more than ${limit} bytes`, {
    hint: "send inputs as application/x-ndjson, one a line, or fewer of them",
  });
}

async function readText(request: Request, limit: number): Promise<string> {
  if (Number(request.headers.get("content-length") ?? 0) > limit) throw tooLarge(limit);
  // With `fatal` what is not UTF-8 throws in place of becoming U+FFFD.
  const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
  const parts: string[] = [];
  let bytes = 0;
  try {
    for await (const chunk of request.body!) {
      bytes += chunk.byteLength;
      if (bytes > limit) throw tooLarge(limit);
      parts.push(decoder.decode(chunk, { stream: true }));
    }
    parts.push(decoder.decode());
  } catch (cause) {
    if (cause instanceof FlurryError) throw cause;
    if (cause instanceof TypeError) throw new FlurryError("BAD_ARGUMENT", "The body is not UTF-8", { cause });
    throw new FlurryError("ABORTED", "The body did not arrive completely", { cause });
  }
  return parts.join("");
}

function isDeeper(value: unknown, depth: number): boolean {
  if (typeof value !== "object" || value === null) return false;
  if (depth === 0) return true;
  return Object.values(value).some((inner) => isDeeper(inner, depth - 1));
}

/** The parser's message without the text that it quotes, which may be long. */
function reasonOf(error: unknown): string {
  return error instanceof Error ? error.message.slice(0, 200) : String(error);
}
