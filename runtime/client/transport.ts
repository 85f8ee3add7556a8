import pRetry from "p-retry";
import type { z } from "zod";
import { codeOf, FlurryError } from "../../errors/errors.ts";
import { errorOf, foreignAnswer, GatewayError, parseJson } from "./gateway-error.ts";

/** Most bytes of an answer in JSON. What can be larger comes as a stream or in pages. */
const MAX_JSON_BYTES = 64 * 1024 * 1024;
/** A longer wait than this is the caller's to decide on. */
const LONGEST_WAIT_MS = 60_000;

export interface ClientOptions {
  /** Where the gateway listens, such as `http://127.0.0.1:8787`. */
  url: string;
  /** `flk_…`; not needed where the gateway has no keys. */
  key?: string | undefined;
  /** @default the runtime's */
  fetch?: ((url: string, init: RequestInit) => Promise<Response>) | undefined;
  /**
   * How often a request that may be repeated is sent again when the gateway is busy or cannot be reached.
   *
   * @default 4, over some seconds
   */
  retries?: number | undefined;
  /**
   * Milliseconds of silence after which a stream that is followed counts as lost. A gateway says something
   * every 5 s.
   *
   * @default 30_000
   */
  silenceMs?: number | undefined;
  /** Ends every request and stream of this client. */
  signal?: AbortSignal | undefined;
}

export interface RequestOptions {
  /** @default "GET" */
  method?: "GET" | "POST" | "PUT" | "DELETE";
  query?: Record<string, string | number | boolean | undefined>;
  headers?: Record<string, string>;
  /** Body as JSON. */
  json?: unknown;
  /** Body as it comes; never sent twice. */
  stream?: ReadableStream<Uint8Array>;
  /** Whether it may be sent again when nobody knows what became of it. @default true for GET and PUT */
  repeatable?: boolean;
  signal?: AbortSignal | undefined;
}

/** Sends requests to one gateway, again where that is harmless, and makes errors of what is no success. */
export class Transport {
  readonly #base: string;
  readonly #options: ClientOptions;

  /** @throws FlurryError BAD_ARGUMENT for a URL that is none of HTTP */
  constructor(options: ClientOptions) {
    this.#base = baseOf(options.url);
    this.#options = options;
  }

  /** The gateway's URL, without a slash at the end. */
  get url(): string {
    return this.#base;
  }

  /** The signal of the client and of one call together. */
  signalOf(signal?: AbortSignal): AbortSignal | undefined {
    const own = this.#options.signal;
    return own && signal ? AbortSignal.any([own, signal]) : (own ?? signal);
  }

  /**
   * Sends a request and returns its answer, whose status is below 300.
   *
   * @throws FlurryError with the code of the gateway's problem; GATEWAY_FAILED, GATEWAY_UNREACHABLE, ABORTED
   */
  async send(path: string, options: RequestOptions = {}): Promise<Response> {
    const { method = "GET", stream } = options;
    const repeatable = (options.repeatable ?? (method === "GET" || method === "PUT")) && !stream;
    const signal = this.signalOf(options.signal);
    if (!repeatable) return this.#once(path, options, signal);
    try {
      return await pRetry(() => this.#once(path, options, signal), {
        retries: this.#options.retries ?? 4,
        minTimeout: 200,
        maxTimeout: 5000,
        randomize: true,
        ...(signal && { signal }),
        shouldRetry: ({ error }) => isPassing(error) && askedWait(error) <= LONGEST_WAIT_MS,
        onFailedAttempt: async ({ error, retriesLeft }) => {
          const waitMs = askedWait(error);
          if (retriesLeft > 0 && waitMs > 0 && waitMs <= LONGEST_WAIT_MS) await delay(waitMs, signal);
        },
      });
    } catch (error) {
      throw signal?.aborted ? abortErrorOf(signal) : error;
    }
  }

  /** Sends a request and reads its answer by a schema. */
  async json<T extends z.ZodType>(path: string, schema: T, options?: RequestOptions): Promise<z.output<T>> {
    return this.read(await this.send(path, options), schema, options?.signal);
  }

  /** Reads an answer by a schema. @throws FlurryError GATEWAY_FAILED, GATEWAY_UNREACHABLE, ABORTED */
  async read<T extends z.ZodType>(response: Response, schema: T, signal?: AbortSignal): Promise<z.output<T>> {
    const decoder = new TextDecoder();
    let text = "";
    let bytes = 0;
    for await (const chunk of this.body(response, { signal })) {
      bytes += chunk.byteLength;
      if (bytes > MAX_JSON_BYTES) throw foreignAnswer(response, `${text.slice(0, 1000)} and too much more`);
      text += decoder.decode(chunk, { stream: true });
    }
    text += decoder.decode();
    const parsed = schema.safeParse(parseJson(text));
    if (!parsed.success) throw foreignAnswer(response, text, { cause: parsed.error });
    return parsed.data;
  }

  /**
   * The chunks of an answer; ending early gives the connection up.
   *
   * @param live - whether the gateway is to say something all the time: a connection that is silent is lost
   */
  async *body(
    response: Response,
    { signal, live = false }: { signal?: AbortSignal | undefined; live?: boolean } = {},
  ): AsyncGenerator<Uint8Array, void, undefined> {
    if (!response.body) return;
    const reader = response.body.getReader();
    const silenceMs = live ? (this.#options.silenceMs ?? 30_000) : undefined;
    let ended = false;
    try {
      while (!ended) {
        const { done, value } = await readWithin(reader, silenceMs);
        ended = done;
        if (value) yield value;
      }
    } catch (cause) {
      throw this.#lost(cause, this.signalOf(signal));
    } finally {
      // What is left of a stream that broke can fail as the stream did.
      if (!ended) await reader.cancel().catch(() => undefined);
    }
  }

  async #once(path: string, options: RequestOptions, signal: AbortSignal | undefined): Promise<Response> {
    const { method = "GET", query = {}, json, stream } = options;
    const headers = new Headers(options.headers);
    if (this.#options.key !== undefined) headers.set("authorization", `Bearer ${this.#options.key}`);
    if (json !== undefined) headers.set("content-type", "application/json");
    const url = new URL(`${this.#base}${path}`);
    for (const [name, value] of Object.entries(query)) {
      if (value !== undefined) url.searchParams.set(name, String(value));
    }
    const body = stream ?? (json === undefined ? undefined : JSON.stringify(json));
    const init = {
      method,
      headers,
      // The key is for this gateway alone.
      redirect: "manual" as const,
      ...(body !== undefined && { body }),
      ...(stream && { duplex: "half" }),
      ...(signal && { signal }),
    };
    let response: Response;
    try {
      response = await (this.#options.fetch ?? fetch)(url.href, init);
    } catch (cause) {
      throw this.#lost(cause, signal);
    }
    if (response.status >= 400) throw await errorOf(response);
    if (!response.ok) throw foreignAnswer(response, response.headers.get("location") ?? "");
    return response;
  }

  #lost(cause: unknown, signal: AbortSignal | undefined): FlurryError {
    if (signal?.aborted) return abortErrorOf(signal);
    if (cause instanceof FlurryError) return cause;
    return new FlurryError(
      "GATEWAY_UNREACHABLE",
      `Cannot reach the gateway at ${this.#base}: ${why(cause)}`,
      {
        cause,
        hint: "start one with `flurry serve`, or name where it listens",
      },
    );
  }
}

/** Reads a chunk; fails when none comes in time. */
async function readWithin(reader: ReadableStreamDefaultReader<Uint8Array>, ms: number | undefined) {
  if (ms === undefined) return reader.read();
  let timer: ReturnType<typeof setTimeout> | undefined;
  const silence = new Promise<never>((_resolve, reject) => {
    timer = setTimeout(() => reject(new Error(`it has been silent for ${ms} ms`)), ms);
  });
  try {
    return await Promise.race([reader.read(), silence]);
  } finally {
    clearTimeout(timer);
  }
}

/** Whether the same request may succeed when it is sent again. */
export function isPassing(error: unknown): boolean {
  if (error instanceof GatewayError) return error.status === 429 || error.status === 503;
  return codeOf(error) === "GATEWAY_UNREACHABLE";
}

export function askedWait(error: unknown): number {
  return (error instanceof GatewayError ? error.retryAfterMs : undefined) ?? 0;
}

/** Waits. @throws FlurryError ABORTED */
export function delay(ms: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const onAbort = () => {
      clearTimeout(timer);
      reject(abortErrorOf(signal));
    };
    if (signal?.aborted) return reject(abortErrorOf(signal));
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", onAbort);
      resolve();
    }, ms);
    signal?.addEventListener("abort", onAbort, { once: true });
  });
}

function abortErrorOf(signal: AbortSignal | undefined): FlurryError {
  const cause: unknown = signal?.reason;
  return cause instanceof FlurryError
    ? cause
    : new FlurryError("ABORTED", "The request was aborted", { cause });
}

/** Says in few words what each runtime says in its own way. */
function why(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const inner = error.cause instanceof Error ? error.cause.message : error.message;
  return /refused/i.test(`${codeOf(error)} ${inner}`) ? "nobody listens there" : inner;
}

function baseOf(text: string): string {
  const url = URL.canParse(text) ? new URL(text) : undefined;
  if (
    !url ||
    !/^https?:$/.test(url.protocol) ||
    url.username !== "" ||
    url.search !== "" ||
    url.hash !== ""
  ) {
    throw new FlurryError("BAD_ARGUMENT", `Cannot use "${text}" as the URL of a gateway`, {
      hint: "it looks like http://127.0.0.1:8787; a key is given apart",
    });
  }
  return `${url.origin}${url.pathname.replace(/\/+$/, "")}`;
}
