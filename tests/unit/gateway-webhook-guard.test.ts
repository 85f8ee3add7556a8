import { describe, expect, test } from "bun:test";
import { FlurryError } from "../../errors/errors.ts";
import { WebhookGuard } from "../../runtime/gateway/webhook-guard.ts";
import { isPublicAddress } from "../../runtime/net/address-guard.ts";
import { rejection } from "../support/agent-peer.ts";

const closed = [
  "0.0.0.0",
  "0.1.2.3",
  "10.0.0.1",
  "100.64.0.1",
  "100.127.255.255",
  "127.0.0.1",
  "127.255.255.254",
  "169.254.169.254",
  "172.16.0.1",
  "172.31.255.255",
  "192.0.0.192",
  "192.0.2.1",
  "192.88.99.1",
  "192.168.0.1",
  "198.18.0.1",
  "198.19.255.255",
  "198.51.100.1",
  "203.0.113.1",
  "224.0.0.1",
  "239.255.255.255",
  "240.0.0.1",
  "255.255.255.255",
  "::",
  "::1",
  "::127.0.0.1",
  "::ffff:127.0.0.1",
  "::ffff:8.8.8.8",
  "64:ff9b::a00:1",
  "64:ff9b:1::a00:1",
  "100::1",
  "2001::1",
  "2001:20::1",
  "2001:db8::1",
  "2002:7f00:1::",
  "2002:808:808::1",
  "3fff::1",
  "5f00::1",
  "fc00::1",
  "fd00:ec2::254",
  "fe80::1",
  "fe80::1%eth0",
  "2a00::1%eth0",
  "fec0::1",
  "ff02::1",
];
const open = [
  "8.8.8.8",
  "1.1.1.1",
  "100.63.255.255",
  "100.128.0.1",
  "172.32.0.1",
  "192.0.1.1",
  "2606:4700::1111",
  "2a00:1450::5",
];

function refusal(act: () => void): string | undefined {
  try {
    act();
    return undefined;
  } catch (error) {
    expect(error).toBeInstanceOf(FlurryError);
    return (error as FlurryError).code;
  }
}

describe("isPublicAddress()", () => {
  test.each(closed)("refuses %s", (address) => expect(isPublicAddress(address)).toBe(false));
  test.each(open)("lets %s pass", (address) => expect(isPublicAddress(address)).toBe(true));
  test.each(["", "localhost", "127.1", "0x7f000001", "8.8.8.8.", "[::1]"])(
    "refuses %p, which is no address",
    (text) => expect(isPublicAddress(text)).toBe(false),
  );
});

describe("WebhookGuard.check()", () => {
  const guard = new WebhookGuard();

  test.each([
    "http://127.0.0.1/",
    "http://127.1/",
    "http://2130706433/",
    "http://0x7f000001/",
    "http://0177.0.0.1/",
    "http://127.0.0.1./",
    "http://①②⑦.0.0.1/",
    "http://[::1]/",
    "http://[0:0:0:0:0:ffff:7f00:1]/",
    "http://[::ffff:169.254.169.254]/",
    "http://169.254.169.254/latest/meta-data",
    "http://localhost/",
    "http://LOCALHOST:8080/",
    "http://localhost./",
    "http://hooks.localhost/",
    "http://user@example.com/",
    "http://user:pass@example.com/",
    "ftp://example.com/",
    "file:///etc/passwd",
    "not a url",
  ])("refuses %s", (url) => expect(refusal(() => guard.check(url))).toBe("WEBHOOK_FORBIDDEN"));

  test.each([
    "https://example.com/hook",
    "http://8.8.8.8:8080/",
    "https://[2606:4700::1111]/x",
    "http://notlocalhost/",
  ])("lets %s pass", (url) => expect(refusal(() => guard.check(url))).toBeUndefined());
});

describe("WebhookGuard.addresses()", () => {
  function guardOf(addresses: string[], allow: string[] = []) {
    const found = addresses.map((address) => ({ address, family: address.includes(":") ? 6 : 4 }));
    return new WebhookGuard({ allow, resolve: async () => found });
  }

  test("gives only the public ones of a name", async () => {
    const found = await guardOf(["10.0.0.1", "8.8.8.8", "::1", "2606:4700::1"]).addresses("https://a.test/");
    expect(found.map(({ address }) => address)).toEqual(["8.8.8.8", "2606:4700::1"]);
  });

  test("refuses a name that has none", async () => {
    const error = await rejection(guardOf(["10.0.0.1", "fe80::1"]).addresses("https://a.test/"));
    expect(error.code).toBe("WEBHOOK_FORBIDDEN");
    expect(error.message).toContain("a.test has no public address");
  });

  test("asks nobody for the address of an address", async () => {
    const resolve = () => Promise.reject(new Error("asked"));
    const guard = new WebhookGuard({ resolve });
    expect(await guard.addresses("http://8.8.8.8/")).toEqual([{ address: "8.8.8.8", family: 4 }]);
    expect(await guard.addresses("http://[2606:4700::1]/")).toEqual([{ address: "2606:4700::1", family: 6 }]);
  });

  test("lets an allowed host be anywhere, at the port that is allowed", async () => {
    const guard = guardOf(
      ["10.0.0.1"],
      ["Hooks.Internal", "other.internal:8080", "[fd00::1]:80", "127.0.0.1:9000"],
    );
    expect(await guard.addresses("http://hooks.internal:1/")).toHaveLength(1);
    expect(await guard.addresses("http://other.internal:8080/")).toHaveLength(1);
    expect(await guard.addresses("http://[fd00:0::1]/")).toHaveLength(1);
    expect(await guard.addresses("http://127.0.0.1:9000/")).toHaveLength(1);
    for (const url of [
      "http://other.internal/",
      "https://[fd00::1]/",
      "http://127.0.0.1:9001/",
      "http://x.hooks.internal/",
    ]) {
      expect((await rejection(guard.addresses(url))).code).toBe("WEBHOOK_FORBIDDEN");
    }
  });

  test.each(["", "http://a", "a/b", "a:b", "a b", "u@a", "a:99999", "*"])(
    "is not made with the entry %p",
    (entry) => {
      expect(refusal(() => new WebhookGuard({ allow: [entry] }))).toBe("BAD_ARGUMENT");
    },
  );
});
