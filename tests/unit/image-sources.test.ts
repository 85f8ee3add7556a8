import { describe, expect, test } from "bun:test";
import { isDebianOrigin, signedByOfStanza, sourcesFor } from "../../guest-agent/image/apt-sources.ts";
import { largestRange } from "../../guest-agent/image/requirements.ts";

const deb822 = `# a comment
Types: deb
URIs: http://mirror.example/debian
Suites: trixie
# in between
Signed-By: /usr/share/keyrings/one.gpg
Components: main

Types: deb
URIs: http://mirror.example/other
Suites: trixie
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc
 -----END PGP PUBLIC KEY BLOCK-----

Types: deb
URIs: http://mirror.example/third
Suites: trixie
`;

describe("signedByOfStanza()", () => {
  test("finds the keyring of the n-th stanza", () => {
    expect(signedByOfStanza(deb822, 1)).toBe("/usr/share/keyrings/one.gpg");
  });

  test("unfolds an embedded key", () => {
    expect(signedByOfStanza(deb822, 2)).toBe(
      "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nabc\n-----END PGP PUBLIC KEY BLOCK-----\n",
    );
  });

  test("is undefined where there is none", () => {
    expect(signedByOfStanza(deb822, 3)).toBeUndefined();
    expect(signedByOfStanza(deb822, 4)).toBeUndefined();
  });
});

describe("sourcesFor()", () => {
  const source = (release: string) => ({
    uri: "http://m/",
    release,
    component: "main",
    signedBy: "k",
    origin: "Debian",
  });
  const host = {
    codename: "bookworm",
    arch: "amd64",
    acquire: [],
    sources: ["bookworm", "bookworm-updates", "bookworm-security", "bookworm-backports"].map(source),
  };

  test("is the host's own for the host's release", () => {
    expect(sourcesFor(host, "bookworm")).toBe(host.sources);
  });

  test("names the same mirrors' other release, without backports", () => {
    const releases = sourcesFor(host, "trixie").map(({ release, origin }) => [release, origin]);
    expect(releases).toEqual([
      ["trixie", undefined],
      ["trixie-updates", undefined],
      ["trixie-security", undefined],
    ]);
  });
});

test("isDebianOrigin() tells Debian from others", () => {
  expect(["Debian", "Debian Backports"].every(isDebianOrigin)).toBe(true);
  expect([undefined, "", "Docker", "Debian Fasttrack", "NotDebian"].some(isDebianOrigin)).toBe(false);
});

test("largestRange() finds a user by name or number", () => {
  const text = "root:1:2\nann:100000:65536\n1001:200000:10\nann:300000:5\n";
  expect(largestRange(text, ["ann", "1000"])).toBe(65_536);
  expect(largestRange(text, ["bob", "1001"])).toBe(10);
  expect(largestRange(text, ["eve"])).toBe(0);
  expect(largestRange("", ["eve"])).toBe(0);
});
