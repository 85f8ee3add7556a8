import type http from "node:http";
import { FlurryError } from "../../../errors/errors.ts";
import { workerLimits } from "../../../guest-agent/protocol/worker/mod.ts";
import type { AddressGuard, GuardedAddress } from "../../net/address-guard.ts";
import { aborting, isConnectError, requestTo } from "../../net/pinned-request.ts";
import type { ReplayBody } from "./replay.ts";

/** One request to one server. */
export interface Hop {
  url: URL;
  method: string;
  /** Names in lower case; no `host`, no `content-length`, nothing of one connection alone. */
  headers: Readonly<Record<string, string[]>>;
  body: ReplayBody | undefined;
  /** Of the body, if that is known. */
  bytes: number | undefined;
}

export interface HopOptions {
  guard: Pick<AddressGuard, "addresses">;
  signal: AbortSignal;
  ca: string | undefined;
}

/**
 * Makes a request to one of the addresses that the guard lets pass, and gives the answer with its body still to
 * come. Nothing is followed, and nothing decoded.
 *
 * @throws FlurryError OUTBOUND_FORBIDDEN; errors of the resolver, the socket and of TLS; the signal's reason
 */
export async function sendHop(hop: Hop, options: HopOptions): Promise<http.IncomingMessage> {
  const { guard, signal } = options;
  let failure: unknown = new FlurryError("OUTBOUND_FAILED", `${hop.url.hostname} has no address`);
  for (const address of await aborting(guard.addresses(hop.url.href), signal)) {
    try {
      return await attempt(hop, address, options);
    } catch (error) {
      if (signal.aborted || !isConnectError(error) || hop.body?.isWhole === false) throw error;
      failure = error;
    }
  }
  throw failure;
}

async function attempt(
  hop: Hop,
  address: GuardedAddress,
  { signal, ca }: HopOptions,
): Promise<http.IncomingMessage> {
  const { url, method, headers, body } = hop;
  const framing = framingOf(hop);
  const request = requestTo(url, address, {
    ...{ method, signal, ca, maxHeaderSize: workerLimits.HEADER_BYTES_MAX },
    // What a request should have, and some servers insist on.
    headers: { host: url.host, accept: "*/*", "user-agent": "flurry", ...headers, ...framing },
  });
  const { promise, resolve, reject } = Promise.withResolvers<http.IncomingMessage>();
  request.on("response", (answer) => {
    answer.on("error", () => undefined); // whoever reads the body sees it; nobody else has to
    resolve(answer);
  });
  request.on("error", reject);
  request.on("upgrade", (_response, socket) => {
    socket.destroy();
    reject(new FlurryError("OUTBOUND_FAILED", "the server changed to another protocol"));
  });
  if (body === undefined) request.end();
  else write(request, body, hop.bytes).catch((error) => request.destroy(error));
  return await promise;
}

/** How a body's end is found. A request that usually has a body says so if it has none. */
function framingOf({ method, body, bytes }: Hop): Record<string, string> {
  if (body === undefined) return /^(?:POST|PUT|PATCH)$/.test(method) ? { "content-length": "0" } : {};
  return bytes === undefined ? { "transfer-encoding": "chunked" } : { "content-length": String(bytes) };
}

async function write(
  request: http.ClientRequest,
  body: ReplayBody,
  bytes: number | undefined,
): Promise<void> {
  let written = 0;
  const wrong = () =>
    new FlurryError("OUTBOUND_FAILED", `the body has not the ${bytes} bytes of its content-length`);
  for await (const chunk of body.chunks()) {
    if (request.destroyed) return;
    written += chunk.length;
    // More than was announced would be the beginning of a request that nobody has checked.
    if (bytes !== undefined && written > bytes) throw wrong();
    if (!request.write(chunk)) await drained(request);
  }
  if (bytes !== undefined && written < bytes) throw wrong();
  request.end();
}

/** Resolves when the request takes more, or is over. */
async function drained(request: http.ClientRequest): Promise<void> {
  if (request.destroyed) return;
  const { promise, resolve } = Promise.withResolvers<void>();
  request.once("drain", resolve);
  request.once("close", resolve);
  await promise;
  request.off("drain", resolve);
  request.off("close", resolve);
}
