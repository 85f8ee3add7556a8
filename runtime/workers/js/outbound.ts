import type http from "node:http";
import { FlurryError } from "../../../errors/errors.ts";
import type {
  HeaderList,
  OutboundHandler,
  OutboundRequest,
  OutboundResponse,
} from "../../../guest-agent/protocol/worker/mod.ts";
import { AddressGuard, type AddressGuardOptions, portOf } from "../../net/address-guard.ts";
import { AllowList } from "./allow-list.ts";
import { HOP_BY_HOP, WITHOUT_BODY } from "./http.ts";
import { type Hop, sendHop } from "./outbound-hop.ts";
import { ReplayBody } from "./replay.ts";

/** Redirects of one request (Fetch standard, HTTP-redirect fetch). */
const REDIRECTS_MAX = 20;
const REDIRECTS = new Set([301, 302, 303, 307, 308]);
/** What speaks of a body that a redirect has dropped (Fetch standard, request-body-header name). */
const OF_BODY = ["content-encoding", "content-language", "content-location", "content-type"];
/** What is for the one server that it was meant for. */
const OF_ORIGIN = ["authorization", "cookie", "proxy-authorization"];

export interface OutboundOptions {
  /** Where the worker may connect to, as `AllowList` has it. Empty for nowhere. */
  allow: readonly string[];
  /** Which addresses these may have; from `outboundGuard`. */
  guard: Pick<AddressGuard, "addresses">;
  /** Further certificates to trust, in PEM. */
  ca?: string | undefined;
}

/**
 * Makes the requests of a worker for it: to what `allow` names, each redirect included, at addresses that the guard
 * lets pass. There is one connection for each request, which ends with it.
 *
 * @throws FlurryError BAD_ARGUMENT for an entry of `allow` that is none
 */
export function outboundOf({ allow, guard, ca }: OutboundOptions): OutboundHandler {
  const list = new AllowList(allow);
  return async (request, signal) => {
    const body = request.body && new ReplayBody(request.body);
    try {
      return await follow(request, firstHop(request, body), list, (hop) =>
        sendHop(hop, { guard, signal, ca }),
      );
    } catch (error) {
      body?.cancel(error);
      throw error;
    }
  };
}

/** The guard for workers' requests: public addresses, and hosts that the operator of this machine allows. */
export function outboundGuard(options: AddressGuardOptions = {}): AddressGuard {
  return new AddressGuard(
    (reason) =>
      new FlurryError("OUTBOUND_FORBIDDEN", `this worker may not connect there: ${reason}`, {
        hint: "workers may connect to public addresses, and to others that the operator allows",
      }),
    options,
  );
}

async function follow(
  request: OutboundRequest,
  first: Hop,
  list: AllowList,
  send: (hop: Hop) => Promise<http.IncomingMessage>,
): Promise<OutboundResponse> {
  let hop = first;
  for (let redirects = 0; ; redirects++) {
    check(hop.url, list);
    const answer = await send(hop);
    const next = request.redirect === "manual" ? undefined : nextHop(hop, answer);
    if (next === undefined) return responseOf(hop, answer, redirects > 0);
    answer.destroy();
    if (request.redirect === "error") throw failed(`it is a redirect to ${next.url.href}`);
    if (redirects === REDIRECTS_MAX) throw failed(`there were more than ${REDIRECTS_MAX} redirects`);
    hop = next;
  }
}

function check(url: URL, list: AllowList): void {
  if (url.protocol !== "http:" && url.protocol !== "https:") {
    throw new FlurryError("OUTBOUND_FORBIDDEN", `${url.protocol} is neither http: nor https:`);
  }
  if (list.allows(url)) return;
  const place = `${url.hostname}:${portOf(url)}`;
  const option = `its option "allow" does not name "${place}"`;
  throw new FlurryError("OUTBOUND_FORBIDDEN", `this worker may not connect to ${place}: ${option}`);
}

function firstHop({ url, method, headers }: OutboundRequest, body: ReplayBody | undefined): Hop {
  if (!URL.canParse(url)) throw failed("its URL is none");
  if (/^(?:CONNECT|TRACE|TRACK)$/i.test(method)) throw failed(`the method ${method} is not supported`);
  const kept: Record<string, string[]> = Object.create(null);
  for (const [mixed, value] of headers) {
    const name = mixed.toLowerCase();
    if (HOP_BY_HOP.has(name) || name === "host" || name === "expect") continue;
    kept[name] = [...(kept[name] ?? []), value];
  }
  const { "content-length": lengths, ...rest } = kept;
  const bytes = body && lengths ? lengthOf(lengths) : undefined;
  return { url: new URL(url), method, headers: rest, body, bytes };
}

function lengthOf(values: readonly string[]): number {
  const [value = ""] = values;
  if (values.length > 1 || !/^\d{1,15}$/.test(value)) throw failed("its content-length is no length");
  return Number(value);
}

/** Where a redirect leads and as what, or undefined if the answer is none. */
function nextHop(hop: Hop, { statusCode = 0, headers }: http.IncomingMessage): Hop | undefined {
  const { location } = headers;
  if (!REDIRECTS.has(statusCode) || location === undefined) return undefined;
  // A header's bytes came as characters; a location in UTF-8 is meant as that.
  const text = Buffer.from(location, "latin1").toString("utf8");
  if (!URL.canParse(text, hop.url)) throw failed("it is a redirect to what is no URL");
  const url = new URL(text, hop.url);
  const isOther = url.origin !== hop.url.origin;
  const { method } = hop;
  const dropsBody =
    (statusCode === 303 && method !== "GET" && method !== "HEAD") ||
    ((statusCode === 301 || statusCode === 302) && method === "POST");
  const without = [...(isOther ? OF_ORIGIN : []), ...(dropsBody ? OF_BODY : [])];
  const kept = Object.entries(hop.headers).filter(([name]) => !without.includes(name));
  const next = { ...hop, url, headers: Object.fromEntries(kept) };
  if (dropsBody) {
    hop.body?.cancel(failed("the redirect wants no body"));
    return { ...next, method: "GET", body: undefined, bytes: undefined };
  }
  if (hop.body?.isWhole === false)
    throw failed("it is a redirect of a body that is too long to be sent again");
  return next;
}

function responseOf(hop: Hop, answer: http.IncomingMessage, redirected: boolean): OutboundResponse {
  const { statusCode: status = 0, statusMessage: statusText, rawHeaders } = answer;
  const headers: [string, string][] = [];
  for (let i = 0; i + 1 < rawHeaders.length; i += 2) {
    const name = rawHeaders[i]!.toLowerCase();
    if (!HOP_BY_HOP.has(name)) headers.push([name, rawHeaders[i + 1]!]);
  }
  const url = new URL(hop.url);
  url.hash = "";
  const head = { status, statusText, headers: headers as HeaderList, url: url.href, redirected };
  if (hop.method !== "HEAD" && !WITHOUT_BODY.has(status)) return { ...head, body: answer };
  answer.destroy();
  return head;
}

function failed(reason: string): FlurryError {
  return new FlurryError("OUTBOUND_FAILED", reason);
}
