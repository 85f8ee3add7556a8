import { createHash } from "node:crypto";
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { packAgent } from "../../guest-agent/image/kernel.ts";
import type { Image } from "../../guest-agent/image/mod.ts";
import { buildAgent } from "../../guest-agent/init/build.ts";
import type { GuestImage } from "../../runtime/fork/open-parent.ts";

/**
 * The image with an agent that does not do what it should where its host name says so:
 * `sabotage-MODE-STEP-…` (guest-agent/init/src/sabotage.h). Its files are gone when it is disposed.
 */
export async function sabotagedImage(image: Image): Promise<GuestImage & AsyncDisposable> {
  const agent = await readFile((await buildAgent({ variant: "sabotage" })).path);
  const modules = (await readFile(image.initrd)).subarray(0, image.manifest.modulesBytes);
  const directory = mkdtempSync(join(tmpdir(), "flurry-sabotage-"));
  const initrd = join(directory, "initrd");
  writeFileSync(initrd, Buffer.concat([modules, packAgent(agent)]));
  chmodSync(directory, 0o755); // QEMU may run as somebody else
  return {
    kernel: image.kernel,
    disk: image.disk,
    initrd,
    // Its parents are not those of the real image.
    hash: createHash("sha256").update(image.hash).update(agent).digest("hex").slice(0, 32),
    manifest: image.manifest,
    async [Symbol.asyncDispose]() {
      rmSync(directory, { recursive: true, force: true });
    },
  };
}
