import { Buffer } from "node:buffer";
import type { RedirectMode } from "../protocol/worker/constants.ts";
import type { HeaderList } from "../protocol/worker/headers.ts";
import { responseBody } from "./answer-body.ts";
import { measure } from "./measured-body.ts";
import type { CallAnswer } from "./outbound-call.ts";
import type { OutboundCalls } from "./outbound-calls.ts";
import { currentRequestId } from "./scope.ts";

type Input = Parameters<typeof globalThis.fetch>[0];

/** Options of Bun's own fetch that need a connection of the guest's. */
interface BunInit extends RequestInit {
  unix?: string;
  tls?: unknown;
  proxy?: unknown;
  decompress?: boolean;
}

/** What is asked for where the worker asks for nothing; `measure` and `responseBody` know all of these. */
const ENCODINGS = "gzip, br, zstd";

/**
 * Puts a fetch in place that has the host make requests to http: and https: URLs. All others, as data: and
 * blob:, are Bun's own as before.
 */
export function shimFetch(calls: OutboundCalls): void {
  const native = globalThis.fetch;
  const OwnRequest = globalThis.Request; // a worker may put another in its place
  const fetch = async (input: Input, init?: BunInit): Promise<Response> => {
    const url = input instanceof OwnRequest ? input.url : String(input);
    if (!/^\s*https?:/i.test(url) || init?.unix !== undefined) return await native(input, init);
    if (init?.tls !== undefined || init?.proxy !== undefined) {
      throw new TypeError(
        "A worker's requests are made by its host: the options tls and proxy have no meaning",
      );
    }
    const request = new OwnRequest(input as Request, init);
    const { method, redirect, signal } = request;
    const { target, headers } = addressed(request);
    const { body, bytes } = await bodyOf(request, init?.body);
    if (bytes !== undefined) headers.set("content-length", String(bytes));
    if (!headers.has("accept-encoding") && init?.decompress !== false) {
      headers.set("accept-encoding", ENCODINGS);
    }
    const head = {
      ...{ requestId: currentRequestId(), method, url: target, headers: [...headers] as HeaderList },
      redirect: redirect as RedirectMode,
    };
    return responseOf(await calls.fetch(head, body, signal), init?.decompress !== false);
  };
  const preconnect = () => undefined; // there is no connection of the guest's to open early
  globalThis.fetch = Object.assign(fetch, { preconnect }) as typeof globalThis.fetch;
}

/** Where a request goes, and its headers: a name and a password in the URL are a header, as Bun has it. */
function addressed(request: Request): { target: string; headers: Headers } {
  const url = new URL(request.url);
  const headers = new Headers(request.headers);
  if ((url.username !== "" || url.password !== "") && !headers.has("authorization")) {
    const credentials = `${decodeURIComponent(url.username)}:${decodeURIComponent(url.password)}`;
    headers.set("authorization", `Basic ${Buffer.from(credentials).toString("base64")}`);
  }
  url.username = "";
  url.password = "";
  url.hash = "";
  return { target: url.href, headers };
}

/** A request's body, and its length where that is known: many servers take none of unknown length. */
async function bodyOf(
  request: Request,
  given: unknown,
): Promise<{ body: ReadableStream<unknown> | undefined; bytes: number | undefined }> {
  if (given instanceof Blob) return { body: request.body ?? undefined, bytes: given.size };
  if (given instanceof FormData) {
    const bytes = await request.bytes();
    return { body: new Blob([bytes]).stream(), bytes: bytes.length };
  }
  return request.body === null ? { body: undefined, bytes: undefined } : await measure(request.body);
}

function responseOf(answer: CallAnswer, decodes: boolean): Response {
  const { status, statusText, url, redirected } = answer;
  const headers = new Headers();
  for (const [name, value] of answer.headers) headers.append(name, value);
  const body = responseBody(answer.body, headers, decodes);
  return marked(new Response(body, { status, statusText, headers }), { url, redirected });
}

/** A response's address, which only a runtime's own fetch can give. */
function marked(response: Response, place: { url: string; redirected: boolean }): Response {
  const clone = response.clone.bind(response);
  Object.defineProperties(response, {
    url: { value: place.url, configurable: true },
    redirected: { value: place.redirected, configurable: true },
    type: { value: "basic", configurable: true },
    clone: { value: () => marked(clone(), place), configurable: true, writable: true },
  });
  return response;
}
