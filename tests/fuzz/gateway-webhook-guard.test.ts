import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { WebhookGuard } from "../../runtime/gateway/webhook-guard.ts";
import { isPublicAddress } from "../../runtime/net/address-guard.ts";

const guard = new WebhookGuard();

/** First address and prefix of what must never be reached. */
const networks: [string, number][] = [
  ["0.0.0.0", 8],
  ["10.0.0.0", 8],
  ["100.64.0.0", 10],
  ["127.0.0.0", 8],
  ["169.254.0.0", 16],
  ["172.16.0.0", 12],
  ["192.168.0.0", 16],
  ["224.0.0.0", 4],
  ["240.0.0.0", 4],
];

const closed4 = fc
  .tuple(fc.constantFrom(...networks), fc.nat(0xffff_ffff))
  .map(([[first, prefix], host]) => (numberOf(first) | (host & (2 ** (32 - prefix) - 1))) >>> 0);

function numberOf(address: string): number {
  return address.split(".").reduce((sum, part) => (sum << 8) | Number(part), 0) >>> 0;
}

function bytesOf(address: number): number[] {
  return [24, 16, 8, 0].map((shift) => (address >>> shift) & 255);
}

const hex = (value: number) => value.toString(16);
const octal = (value: number) => `0${value.toString(8)}`;

/** Ways to write an IPv4 address as the host of a URL. */
const forms4: ((bytes: number[], address: number) => string)[] = [
  (bytes) => bytes.join("."),
  (bytes) => `${bytes.join(".")}.`,
  (bytes) => bytes.map((byte) => `0x${hex(byte)}`).join("."),
  (bytes) => bytes.map((byte) => `0X${hex(byte).toUpperCase()}`).join("."),
  (bytes) => bytes.map(octal).join("."),
  (_, address) => String(address),
  (_, address) => `0x${hex(address)}`,
  (_, address) => octal(address),
  ([a], address) => `${a}.${address & 0xff_ffff}`,
  ([a, b], address) => `${a}.${b}.${address & 0xffff}`,
  (bytes) => bytes.join("%2e"),
  (bytes) => bytes.join("。"),
  (bytes) => [...bytes.join(".")].map(fullWidth).join(""),
];

/** IPv6 addresses that lead to an IPv4 one. */
const forms6: ((bytes: number[], address: number) => string)[] = [
  (bytes) => `::ffff:${bytes.join(".")}`,
  (bytes) => `0:0:0:0:0:ffff:${bytes.join(".")}`,
  (_, address) => `::ffff:${hex(address >>> 16)}:${hex(address & 0xffff)}`,
  (_, address) => `::FFFF:${hex(address >>> 16)}:${hex(address & 0xffff)}`,
  (bytes) => `::${bytes.join(".")}`,
  (bytes) => `::ffff:0:${bytes.join(".")}`,
  (bytes) => `64:ff9b::${bytes.join(".")}`,
  (_, address) => `64:ff9b:1::${hex(address >>> 16)}:${hex(address & 0xffff)}`,
  (_, address) => `2002:${hex(address >>> 16)}:${hex(address & 0xffff)}::1`,
  (_, address) => `2001:0:${hex(address >>> 16)}:${hex(address & 0xffff)}::1`,
];

function fullWidth(char: string): string {
  return /\d/.test(char) ? String.fromCodePoint(0xff10 + Number(char)) : char;
}

function isRefused(url: string): boolean {
  try {
    guard.check(url);
    return false;
  } catch (error) {
    return error instanceof Error && "code" in error && error.code === "WEBHOOK_FORBIDDEN";
  }
}

describe("no private address passes", () => {
  test("in any way to write an IPv4 address", () => {
    fc.assert(
      fc.property(closed4, fc.constantFrom(...forms4), fc.nat(65535), (address, form, port) => {
        expect(isRefused(`http://${form(bytesOf(address), address)}:${port}/`)).toBe(true);
      }),
      { seed: 20260131, numRuns: 3000 },
    );
  });

  test("inside an IPv6 address", () => {
    fc.assert(
      fc.property(closed4, fc.constantFrom(...forms6), (address, form) => {
        const text = form(bytesOf(address), address);
        expect(isPublicAddress(text)).toBe(false);
        expect(isRefused(`https://[${text}]/`)).toBe(true);
      }),
      { seed: 20260201, numRuns: 3000 },
    );
  });

  test("of IPv6 outside 2000::/3", () => {
    const words = fc.array(fc.nat(0xffff), { minLength: 8, maxLength: 8 });
    fc.assert(
      fc.property(words, (parts) => {
        const text = parts.map(hex).join(":");
        if (parts[0]! >>> 13 !== 1) expect(isPublicAddress(text)).toBe(false);
        expect(isRefused(`http://[${text}]/`)).toBe(!isPublicAddress(text));
      }),
      { seed: 20260202, numRuns: 3000 },
    );
  });

  test("whatever a resolver answers", async () => {
    const answers = fc.array(
      fc.oneof(
        closed4.map((address) => bytesOf(address).join(".")),
        fc.ipV4(),
        fc.ipV6(),
      ),
    );
    await fc.assert(
      fc.asyncProperty(answers, async (addresses) => {
        const resolve = async () =>
          addresses.map((address) => ({ address, family: address.includes(":") ? 6 : 4 }));
        const given = await new WebhookGuard({ resolve }).addresses("http://a.test/").catch(() => []);
        for (const { address } of given) expect(isPublicAddress(address)).toBe(true);
        expect(given.length).toBe(addresses.filter(isPublicAddress).length);
      }),
      { seed: 20260203, numRuns: 1000 },
    );
  });
});
