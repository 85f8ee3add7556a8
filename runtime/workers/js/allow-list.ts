import { isIP } from "node:net";
import { FlurryError } from "../../../errors/errors.ts";
import { bareHost, portOf } from "../../net/address-guard.ts";

interface Entry {
  /** As the URL class writes it, without brackets and last dot. */
  host: string;
  /** All names below `host`, and not itself. */
  isBelow: boolean;
  /** Undefined for the default port of the URL's scheme. */
  port: number | undefined;
}

/** Where a worker's own requests may go. */
export class AllowList {
  readonly #entries: readonly Entry[];

  /**
   * @param entries - `host:port`, or `host` for 80 with http and 443 with https; `*.host` for all names below a
   * host; addresses of IPv6 in brackets
   * @throws FlurryError BAD_ARGUMENT for an entry that is none
   */
  constructor(entries: readonly string[]) {
    this.#entries = entries.map(entryOf);
  }

  allows(url: URL): boolean {
    const host = bareHost(url);
    const port = portOf(url);
    const standard = url.protocol === "https:" ? 443 : 80;
    return this.#entries.some(
      (entry) =>
        port === (entry.port ?? standard) &&
        (entry.isBelow ? host.endsWith(`.${entry.host}`) && isIP(host) === 0 : host === entry.host),
    );
  }
}

function entryOf(entry: string): Entry {
  const {
    below,
    name = "",
    digits,
  } = /^(?<below>\*\.)?(?<name>\[[0-9a-f:.]+\]|[^\s/?#@*:[\]\\]+)(?::(?<digits>\d{1,5}))?$/i.exec(entry)
    ?.groups ?? {};
  const url = URL.canParse(`http://${name}/`) ? new URL(`http://${name}/`) : undefined;
  const port = digits === undefined ? undefined : Number(digits);
  const host = url === undefined ? "" : bareHost(url);
  const isBad =
    host === "" || (port !== undefined && (port < 1 || port > 65535)) || (below && isIP(host) !== 0);
  if (isBad) {
    throw new FlurryError("BAD_ARGUMENT", `"${entry}" is neither a host nor host:port`, {
      hint: 'name it as in a URL: "api.example.com:443", "*.example.com:443" or "[2001:db8::1]:8080"',
    });
  }
  return { host, isBelow: below !== undefined, port };
}
