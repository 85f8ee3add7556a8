import { Buffer } from "node:buffer";

/** What Bun's own server knows of a response's body, and no API tells. */
export interface KnownBody {
  /** Bytes. */
  size: number;
  /** The Content-Type that the response got from its body alone. */
  implied?: string | undefined;
  /** What Bun's server would say of a body without a type. */
  fallback?: string | undefined;
}

/** By response, and by the stream of a response's body. */
const bodies = new WeakMap<object, KnownBody>();

const TEXT = "text/plain;charset=utf-8";
const BYTES = "application/octet-stream";

/** Undefined for streams of a worker's own, and for responses that were made before the shim. */
export function knownBody(response: Response): KnownBody | undefined {
  return bodies.get(response);
}

/**
 * Makes `Response` tell what is needed to send a worker's answer as Bun's own server would:
 *
 * - `new Response("text")` has no Content-Type in Bun 1.4 before its server sends it, while the Fetch
 *   standard ("extract a body") gives it one at once, and workers rely on that.
 * - A body's length is lost when it is read as a stream; `knownBody` has it. It stays known when a response
 *   is cloned, or another one is made of its body, as middleware does.
 */
export function shimResponse(): void {
  const native = globalThis.Response;
  keepBodies(native);
  globalThis.Response = new Proxy(native, {
    construct(target, args, newTarget) {
      const self = newTarget === globalThis.Response ? target : newTarget;
      const response: Response = Reflect.construct(target, args, self);
      const known = describe(response, args[0], args[1]);
      if (known) remember(response, known);
      return response;
    },
  });
}

/** Bun's own accessor cannot be replaced for all responses at once. */
function remember(response: Response, known: KnownBody): void {
  bodies.set(response, known);
  let owner: object | null = response;
  let accessor: PropertyDescriptor | undefined;
  while (owner && !accessor) {
    accessor = Object.getOwnPropertyDescriptor(owner, "body");
    owner = Object.getPrototypeOf(owner);
  }
  const { get } = accessor ?? {};
  if (!get) return;
  Object.defineProperty(response, "body", {
    configurable: true,
    get: () => {
      const stream: ReadableStream | null = Reflect.apply(get, response, []);
      if (stream) bodies.set(stream, known);
      return stream;
    },
  });
}

function describe(response: Response, body: unknown, init: unknown): KnownBody | undefined {
  // Hono's HTML is a String with more to it.
  if (typeof body === "string" || body instanceof String) {
    const size = Buffer.byteLength(String(body));
    if (response.headers.has("content-type")) return { size, fallback: TEXT };
    response.headers.set("content-type", TEXT);
    return { size, implied: TEXT, fallback: TEXT };
  }
  if (body instanceof Blob || body instanceof URLSearchParams) {
    const size = body instanceof Blob ? body.size : Buffer.byteLength(String(body));
    // A pipe's or a device's is not known.
    if (!Number.isSafeInteger(size)) return undefined;
    if (hasType(init)) return { size, fallback: BYTES };
    return { size, implied: response.headers.get("content-type") ?? undefined, fallback: BYTES };
  }
  if (body instanceof ArrayBuffer || ArrayBuffer.isView(body)) {
    return { size: body.byteLength, fallback: BYTES };
  }
  const whole = body instanceof ReadableStream ? bodies.get(body) : undefined;
  return whole && { size: whole.size, fallback: BYTES };
}

function hasType(init: unknown): boolean {
  const headers = typeof init === "object" && init !== null && "headers" in init ? init.headers : undefined;
  return new Headers(headers as HeadersInit | undefined).has("content-type");
}

/** Keeps what is known where a body goes from one object to another. */
function keepBodies(native: typeof Response): void {
  const { prototype } = native;
  const { clone } = prototype;
  prototype.clone = function (this: Response) {
    const copy = clone.call(this);
    const known = bodies.get(this);
    if (known) remember(copy, known);
    return copy;
  };
  const { json } = native;
  native.json = (data: unknown, init?: ResponseInit | number) => {
    const text = JSON.stringify(data);
    if (text === undefined) throw new TypeError("Value is not JSON serializable");
    // Bun's own makes the head: it takes a status in place of `init`, too.
    return new globalThis.Response(text, Reflect.apply(json, native, [null, init]) as ResponseInit);
  };
}
