import type { MiddlewareHandler } from "hono";
import { createMiddleware } from "hono/factory";
import { FlurryError } from "../../errors/errors.ts";
import { checkShape } from "../json-shape.ts";
import { arriving } from "./arriving.ts";
import type { GatewayEnv, GatewayLimits, Principal } from "./context.ts";

const JSON_TYPE = /^application\/([\w.-]+\+)?json$/;

/** Bodies that are files, whatever their media type says. */
const FILE_PATH = /^\/v1\/vms\/[^/]+\/files\//;

/** The essence of a Content-Type header: in lower case, without parameters. "" without a header. */
export function mediaType(header: string | undefined): string {
  return (header ?? "").split(";")[0]!.trim().toLowerCase();
}

/**
 * Reads a request's JSON body before the route's schema sees it; it stays to be read with `c.req.text()`
 * and `c.req.json()`. Bodies of other media types are left to the route, and nothing is read of who is
 * nobody.
 *
 * @throws FlurryError BODY_TOO_LARGE, BODY_TIMEOUT, LIMIT_REACHED when all bodies together would be too
 * large, MEDIA_TYPE_UNSUPPORTED, BAD_ARGUMENT when it is no JSON in UTF-8
 */
export function jsonBodies(limits: GatewayLimits): MiddlewareHandler<GatewayEnv> {
  const held = new HeldBytes(limits.bodiesBytes);
  return createMiddleware<GatewayEnv>(async (c, next) => {
    const header = c.req.header("content-type");
    const principal: Principal | undefined = c.var.principal;
    const isJson = JSON_TYPE.test(mediaType(header)) && !FILE_PATH.test(c.req.path);
    if (c.req.raw.body === null || !principal || !isJson) return next();
    refuseEncodings(c.req.header("content-encoding"), header);
    using share = held.open();
    const text = await readText(c.req.raw, limits, share);
    // Whether a request without a body has an empty one differs between runtimes; many send the media type with it.
    const value = text === "" ? undefined : parseJson(text, "The body");
    // Read and checked once: hono would do both again for each who asks.
    c.req.text = () => Promise.resolve(text);
    c.req.json = <T>() =>
      text === ""
        ? Promise.reject(new FlurryError("BAD_ARGUMENT", "The body is empty"))
        : Promise.resolve(value as T);
    return await next();
  });
}

/** What one body holds of all bodies' bytes, until it is disposed. */
interface Share extends Disposable {
  /** @throws FlurryError LIMIT_REACHED */
  add(bytes: number): void;
}

/** Bytes of all bodies that are being read and worked on. */
class HeldBytes {
  readonly #most: number;
  #bytes = 0;

  constructor(most: number) {
    this.#most = most;
  }

  open(): Share {
    let own = 0;
    return {
      add: (bytes) => {
        own += bytes;
        this.#bytes += bytes;
        // The only one has room whatever its size: its own limit is another.
        if (this.#bytes <= this.#most || this.#bytes === own) return;
        throw new FlurryError(
          "LIMIT_REACHED",
          `The gateway is reading ${this.#most} bytes of bodies already`,
          {
            hint: "ask again in a second, or send inputs as application/x-ndjson",
            retryAfterSeconds: 1,
          },
        );
      },
      [Symbol.dispose]: () => {
        this.#bytes -= own;
        own = 0;
      },
    };
  }
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
 * @throws FlurryError BAD_ARGUMENT, BODY_TOO_LARGE
 */
export function parseJson(text: string, what: string): unknown {
  checkShape(text, what);
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new FlurryError("BAD_ARGUMENT", `${what} is no JSON: ${reasonOf(cause)}`, { cause });
  }
}

/** @throws FlurryError BODY_TOO_LARGE */
export function tooLarge(limit: number): FlurryError {
  return new FlurryError("BODY_TOO_LARGE", `The body has more than ${limit} bytes`, {
    hint: "send inputs as application/x-ndjson, one a line, or fewer of them",
  });
}

async function readText(
  request: Request,
  { bodyBytes, bodySilenceMs, bodyMs }: GatewayLimits,
  share: Share,
): Promise<string> {
  if (Number(request.headers.get("content-length") ?? 0) > bodyBytes) throw tooLarge(bodyBytes);
  // With `fatal` what is not UTF-8 throws in place of becoming U+FFFD.
  const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
  const parts: string[] = [];
  let bytes = 0;
  try {
    for await (const chunk of arriving(request.body!, { silenceMs: bodySilenceMs, totalMs: bodyMs })) {
      bytes += chunk.byteLength;
      if (bytes > bodyBytes) throw tooLarge(bodyBytes);
      share.add(chunk.byteLength);
      parts.push(decoder.decode(chunk, { stream: true }));
    }
    parts.push(decoder.decode());
  } catch (cause) {
    if (cause instanceof FlurryError) throw cause;
    throw new FlurryError("BAD_ARGUMENT", "The body is not UTF-8", { cause });
  }
  return parts.join("");
}

/** The parser's message without the text that it quotes, which may be long. */
function reasonOf(error: unknown): string {
  return error instanceof Error ? error.message.slice(0, 200) : String(error);
}
