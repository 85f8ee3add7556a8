import http from "node:http";
import https from "node:https";
import { isIP } from "node:net";
import { bareHost, type GuardedAddress, portOf } from "./address-guard.ts";

export interface PinnedRequestOptions {
  method: string;
  /** `Host` among them: the name is nothing that is connected to. */
  headers: http.OutgoingHttpHeaders;
  signal: AbortSignal;
  /** Further certificates to trust, in PEM. */
  ca?: string | undefined;
  /** Bytes of the answer's head. */
  maxHeaderSize: number;
}

/** Begins a request to a URL of http or https by one of its addresses; the caller sends the body and ends it. */
export function requestTo(
  url: URL,
  { address, family }: GuardedAddress,
  options: PinnedRequestOptions,
): http.ClientRequest {
  const { ca, ...rest } = options;
  const secure = url.protocol === "https:";
  return (secure ? https : http).request({
    ...rest,
    host: address,
    family,
    port: portOf(url),
    path: `${url.pathname}${url.search}`,
    // The certificate has to be that of the name, though an address is connected to.
    ...(secure ? { ...(isIP(bareHost(url)) === 0 ? { servername: bareHost(url) } : {}), ca } : {}),
    // A connection of its own: one that is kept could be to an address of before.
    agent: false,
  });
}

/** Whether a request failed before it had a connection: nobody has seen anything of it. */
export function isConnectError(error: unknown): boolean {
  return error instanceof Error && "syscall" in error && error.syscall === "connect";
}

/** Rejects with the signal's reason when that fires; what cannot be stopped, such as the resolver, goes on. */
export async function aborting<T>(promise: Promise<T>, signal: AbortSignal): Promise<T> {
  signal.throwIfAborted();
  const { promise: aborted, reject } = Promise.withResolvers<never>();
  const onAbort = () => reject(signal.reason);
  signal.addEventListener("abort", onAbort, { once: true });
  try {
    return await Promise.race([promise, aborted]);
  } finally {
    signal.removeEventListener("abort", onAbort);
  }
}
