import { FlurryError } from "../../errors/errors.ts";

/** Parser of an option that is a whole number from 1 on. */
export function positiveInteger(option: string): (value: string) => number {
  return (value) => {
    const number = Number(value);
    if (/^\d+$/.test(value) && Number.isSafeInteger(number) && number > 0) return number;
    throw new FlurryError("BAD_ARGUMENT", `${option} takes a whole number from 1 on, not "${value}"`);
  };
}

/** Parser of an option that is a number above 0. */
export function positiveNumber(option: string): (value: string) => number {
  return (value) => {
    const number = Number(value);
    if (value.trim() !== "" && Number.isFinite(number) && number > 0) return number;
    throw new FlurryError("BAD_ARGUMENT", `${option} takes a number above 0, not "${value}"`);
  };
}

/** Collects `--env NAME=VALUE`. */
export function environment(value: string, previous: Record<string, string> = {}): Record<string, string> {
  const [name, text] = pair("--env", "NAME=VALUE", value);
  return { ...previous, [name]: text };
}

/** The two sides of the first `=`, of which the left one is not empty. */
export function pair(option: string, form: string, value: string): [string, string] {
  const at = value.indexOf("=");
  if (at <= 0) throw new FlurryError("BAD_ARGUMENT", `${option} takes ${form}, not "${value}"`);
  return [value.slice(0, at), value.slice(at + 1)];
}

/** Where to listen. */
export interface Address {
  hostname: string;
  port: number;
}

/** Parser of an option that is `host:port`, with an IPv6 address in brackets. */
export function address(option: string): (value: string) => Address {
  return (value) => {
    const [, bracketed, plain, digits] = /^(?:\[([0-9a-f:.]+)\]|([^:[\]]+)):(\d{1,5})$/i.exec(value) ?? [];
    const hostname = bracketed ?? plain;
    const port = Number(digits);
    if (hostname !== undefined && port <= 65_535) return { hostname, port };
    throw new FlurryError("BAD_ARGUMENT", `${option} takes HOST:PORT, not "${value}"`, {
      hint: "for example 127.0.0.1:8787, or [::1]:8787",
    });
  };
}

export const PEER_TEXT =
  "another host's memserver, asked for a frozen parent before one is booted (may be repeated)";

/** Collects `--peer HOST:PORT`. */
export function peers(value: string, previous: string[]): string[] {
  address("--peer")(value);
  return [...previous, value];
}

export const LAZY_TEXT =
  "have VMs get their memory page by page as they need it, instead of mapping all of it";
