import { expect, test } from "bun:test";
import { spawnSync } from "node:child_process";
import { chmodSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { newSshKey } from "../../runtime/fork/ssh-key.ts";
import { temporaryDirectory } from "../support/vm.ts";

test("newSshKey() makes files in OpenSSH's formats", () => {
  const key = newSshKey();
  const fields = key.public.trim().split(" ");
  expect(fields).toEqual(["ssh-ed25519", expect.stringMatching(/^AAAAC3NzaC1lZDI1NTE5AAAAI/), "flurry"]);
  const [begin, ...lines] = key.private.trim().split("\n");
  expect([begin, lines.pop()]).toEqual([
    "-----BEGIN OPENSSH PRIVATE KEY-----",
    "-----END OPENSSH PRIVATE KEY-----",
  ]);
  const bytes = Buffer.from(lines.join(""), "base64");
  expect(bytes.subarray(0, 15).toString("latin1")).toBe("openssh-key-v1\0");
  // Without a cipher its block has 8 bytes, and what is encrypted is padded to that.
  const sealed = 15 + 8 + 8 + 4 + 4 + 4 + Buffer.from(fields[1]!, "base64").length;
  expect(bytes.readUInt32BE(sealed)).toBe(bytes.length - sealed - 4);
  expect(bytes.readUInt32BE(sealed) % 8).toBe(0);
});

test("newSshKey() makes keys that ssh-keygen reads", () => {
  using directory = temporaryDirectory();
  const file = join(directory.path, "key");
  const key = newSshKey();
  writeFileSync(file, key.private);
  chmodSync(file, 0o600);
  const read = spawnSync("ssh-keygen", ["-y", "-f", file], { encoding: "utf8" });
  expect(read.stderr).toBe("");
  expect(read.stdout.trim()).toBe(key.public.trim());
});
