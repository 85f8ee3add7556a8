import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { createPrivateKey, X509Certificate } from "node:crypto";
import { chmodSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { installationKeys, SERVER_NAME } from "../../memserver/peer/keys.ts";
import { rejection } from "../support/agent-peer.ts";
import { type TemporaryDirectory, temporaryDirectory } from "../support/vm.ts";

let home: TemporaryDirectory;
let directory: string;

beforeEach(() => {
  home = temporaryDirectory();
  directory = join(home.path, "cluster", "keys");
});

afterEach(() => home[Symbol.dispose]());

describe("installationKeys()", () => {
  test("makes a key that only its user can read, and a certificate of it", async () => {
    const { key, certificate, raw } = await installationKeys(directory);
    const parsed = new X509Certificate(certificate);
    expect(parsed.checkPrivateKey(createPrivateKey(key))).toBe(true);
    expect(parsed.subjectAltName).toBe(`DNS:${SERVER_NAME}`);
    expect(raw.equals(parsed.raw)).toBe(true);
    expect(statSync(directory).mode & 0o777).toBe(0o700);
    for (const name of ["key.pem", "cert.pem"]) {
      expect(statSync(join(directory, name)).mode & 0o777).toBe(0o600);
    }
    expect(readFileSync(join(directory, "key.pem"), "utf8")).toBe(key);
  });

  test("is valid whatever the clocks of hosts say", async () => {
    const parsed = new X509Certificate((await installationKeys(directory)).certificate);
    expect(new Date(parsed.validFrom).getUTCFullYear()).toBe(2020);
    expect(new Date(parsed.validTo).getUTCFullYear()).toBe(2120);
  });

  test("gives the same keys from then on", async () => {
    const made = await installationKeys(directory);
    expect(await installationKeys(directory)).toEqual(made);
  });

  test("gives all who come at the same time the same keys, and leaves nothing else", async () => {
    const all = await Promise.all(Array.from({ length: 8 }, () => installationKeys(directory)));
    expect(new Set(all.map(({ key }) => key)).size).toBe(1);
    expect(readdirSync(join(directory, ".."))).toEqual(["keys"]);
    expect(readdirSync(directory).sort()).toEqual(["cert.pem", "key.pem"]);
  });

  test("makes another key for another installation", async () => {
    const other = await installationKeys(join(home.path, "other"));
    expect((await installationKeys(directory)).raw.equals(other.raw)).toBe(false);
  });

  test("makes them in a directory that is empty", async () => {
    mkdirSync(directory, { recursive: true });
    expect((await installationKeys(directory)).key).toContain("BEGIN PRIVATE KEY");
  });

  async function refused(change: () => void): Promise<string> {
    const before = await installationKeys(directory);
    change();
    const error = await rejection(installationKeys(directory));
    expect(error.code).toBe("BAD_ARGUMENT");
    expect((error as { hint?: string }).hint).toBeTruthy();
    expect(before.key).toContain("PRIVATE KEY");
    return error.message;
  }

  test("refuses a key that others may read", async () => {
    const message = await refused(() => chmodSync(join(directory, "key.pem"), 0o640));
    expect(message).toBe(`Cannot use the keys in "${directory}": others may read its key`);
  });

  test.each(["key.pem", "cert.pem"])("refuses a directory without %s, and makes no other", async (name) => {
    const message = await refused(() => rmSync(join(directory, name)));
    expect(message).toBe(`Cannot use the keys in "${directory}": "${name}" is missing`);
    expect(readdirSync(directory)).toHaveLength(1);
  });

  test("refuses the key of another certificate", async () => {
    const other = await installationKeys(join(home.path, "other"));
    const message = await refused(() => writeFileSync(join(directory, "key.pem"), other.key));
    expect(message).toBe(`Cannot use the keys in "${directory}": its key is not its certificate's`);
  });

  test.each(["key.pem", "cert.pem"])("refuses %s that is no PEM", async (name) => {
    const message = await refused(() => writeFileSync(join(directory, name), "nothing"));
    expect(message).toBe(`Cannot use the keys in "${directory}": its files cannot be read as PEM`);
  });

  test("refuses a directory of something else", async () => {
    mkdirSync(directory, { recursive: true });
    writeFileSync(join(directory, "notes"), "mine");
    const error = await rejection(installationKeys(directory));
    expect(error.message).toBe(`Cannot use the keys in "${directory}": it holds other files, but no keys`);
    expect(readdirSync(directory)).toEqual(["notes"]);
  });
});
