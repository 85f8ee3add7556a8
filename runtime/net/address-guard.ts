import { lookup } from "node:dns/promises";
import { BlockList, isIP } from "node:net";
import { FlurryError } from "../../errors/errors.ts";

/** An address that may be connected to. */
export interface GuardedAddress {
  address: string;
  family: number;
}

/** Finds the addresses of a name; node's `lookup` with `all`. */
export type Resolve = (name: string) => Promise<readonly GuardedAddress[]>;

/** IPv4 that is not the public internet (IANA's special-purpose registry, multicast, reserved). */
const closed4 = blockList("ipv4", [
  ["0.0.0.0", 8],
  ["10.0.0.0", 8],
  ["100.64.0.0", 10],
  ["127.0.0.0", 8],
  ["169.254.0.0", 16],
  ["172.16.0.0", 12],
  ["192.0.0.0", 24],
  ["192.0.2.0", 24],
  ["192.88.99.0", 24],
  ["192.168.0.0", 16],
  ["198.18.0.0", 15],
  ["198.51.100.0", 24],
  ["203.0.113.0", 24],
  ["224.0.0.0", 4],
  ["240.0.0.0", 4],
]);
/**
 * All of IPv6 that is public. What is outside (loopback, link-local, unique local, multicast, IPv4-mapped,
 * NAT64) is refused without being listed.
 */
const open6 = blockList("ipv6", [["2000::", 3]]);
/** Exceptions of it: protocol assignments with Teredo, documentation, 6to4, documentation. */
const closed6 = blockList("ipv6", [
  ["2001::", 23],
  ["2001:db8::", 32],
  ["2002::", 16],
  ["3fff::", 20],
]);

export interface AddressGuardOptions {
  /** Hosts, as `host` or `host:port`, that may be connected to wherever they are. @default none */
  allow?: readonly string[] | undefined;
  /** @default the system's resolver */
  resolve?: Resolve | undefined;
}

/**
 * Keeps what others have this machine connect to away from the machine itself and from private networks:
 * they could otherwise make it talk to what only it can reach.
 */
export class AddressGuard {
  readonly #allowed: ReadonlySet<string>;
  readonly #resolve: Resolve;
  readonly #refusal: (reason: string) => FlurryError;

  /**
   * @param refusal - the error for a URL that may not be connected to
   * @throws FlurryError BAD_ARGUMENT for an entry of `allow` that is none
   */
  constructor(refusal: (reason: string) => FlurryError, options: AddressGuardOptions = {}) {
    const { allow = [], resolve = (name: string) => lookup(name, { all: true, order: "ipv4first" }) } =
      options;
    this.#refusal = refusal;
    this.#allowed = new Set(allow.map(allowedHost));
    this.#resolve = resolve;
  }

  /**
   * Refuses what can be seen to be forbidden without asking for the name's addresses.
   *
   * @throws FlurryError of the kind that the guard was made with
   */
  check(url: string): void {
    const parsed = this.#parse(url);
    if (this.#isAllowed(parsed)) return;
    const host = bareHost(parsed);
    if (/(^|\.)localhost$/.test(host)) throw this.#refusal(`${host} is this machine`);
    if (isIP(host) !== 0 && !isPublicAddress(host)) throw this.#refusal(`${host} is no public address`);
  }

  /**
   * The addresses that may be connected to now. Whoever asks has to connect to one of these and not to ask
   * for the name again: the next answer may be another.
   *
   * @throws FlurryError as `check`; the resolver's own errors
   */
  async addresses(url: string): Promise<GuardedAddress[]> {
    this.check(url);
    const parsed = this.#parse(url);
    const host = bareHost(parsed);
    const family = isIP(host);
    const found = family === 0 ? await this.#resolve(host) : [{ address: host, family }];
    if (this.#isAllowed(parsed)) return [...found];
    const open = found.filter(({ address }) => isPublicAddress(address));
    if (open.length === 0) throw this.#refusal(`${host} has no public address`);
    return open;
  }

  #parse(url: string): URL {
    if (!URL.canParse(url)) throw this.#refusal(`"${url.slice(0, 100)}" is no URL`);
    // The URL class writes every form of an IPv4 address (0x7f.1, 2130706433, ①②⑦.0.0.1) in one way.
    const parsed = new URL(url);
    if (parsed.protocol !== "http:" && parsed.protocol !== "https:") {
      throw this.#refusal(`${parsed.protocol} is neither http: nor https:`);
    }
    if (parsed.username !== "" || parsed.password !== "")
      throw this.#refusal("its URL holds a user name or a password");
    if (bareHost(parsed) === "") throw this.#refusal("its URL has no host");
    return parsed;
  }

  #isAllowed(url: URL): boolean {
    return (
      this.#allowed.has(hostKey(url.hostname)) || this.#allowed.has(`${hostKey(url.hostname)}:${portOf(url)}`)
    );
  }
}

/** Whether an address in its textual form is of the public internet. False for what is no address. */
export function isPublicAddress(address: string): boolean {
  switch (isIP(address)) {
    case 4:
      return !closed4.check(address, "ipv4");
    case 6:
      // A zone ("%eth0") names an interface of this machine.
      return !address.includes("%") && open6.check(address, "ipv6") && !closed6.check(address, "ipv6");
    default:
      return false;
  }
}

/** Port of a URL of http or https. */
export function portOf(url: URL): number {
  if (url.port !== "") return Number(url.port);
  return url.protocol === "https:" ? 443 : 80;
}

/** The host without the brackets of an IPv6 address and without a last dot. */
export function bareHost(url: URL): string {
  return url.hostname.replace(/^\[(.*)\]$/, "$1").replace(/\.$/, "");
}

function hostKey(hostname: string): string {
  return hostname.replace(/\.$/, "");
}

/** An entry of the list of allowed hosts as it is looked up: `host` or `host:port`. */
function allowedHost(entry: string): string {
  const url = URL.canParse(`http://${entry}/`) ? new URL(`http://${entry}/`) : undefined;
  const isHost = url !== undefined && url.pathname === "/" && !/[/?#@*\s]/.test(entry);
  if (!isHost) {
    throw new FlurryError("BAD_ARGUMENT", `"${entry}" is neither a host nor host:port`, {
      hint: 'name it as in a URL: "hooks.internal", "10.0.0.5:8080" or "[fd00::1]:8080"',
    });
  }
  // The URL class leaves :80 out, which here is not the same as every port.
  const port = /:(\d+)$/.exec(entry)?.[1];
  return port === undefined ? hostKey(url.hostname) : `${hostKey(url.hostname)}:${Number(port)}`;
}

function blockList(family: "ipv4" | "ipv6", subnets: readonly (readonly [string, number])[]): BlockList {
  const list = new BlockList();
  for (const [address, prefix] of subnets) list.addSubnet(address, prefix, family);
  return list;
}
