import { createCipheriv, createDecipheriv, randomBytes } from "node:crypto";
import { open, readFile, rename } from "node:fs/promises";
import { dirname } from "node:path";
import { codeOf, FlurryError } from "../../errors/errors.ts";
import { onFiles, syncDirectory } from "./files.ts";

const KEY_BYTES = 32;
const NONCE_BYTES = 12;
const TAG_BYTES = 16;
/** First byte of what is sealed. */
const FORMAT = 1;

/**
 * Encrypts what must not lie in plain on the disk: AES-256-GCM (NIST SP 800-38D) with a random nonce and
 * with what the value belongs to as additional data, so that no value can be put in another one's place.
 * Sealed: format (1 byte), nonce (12), ciphertext, tag (16).
 */
export class Sealer {
  readonly #key: Uint8Array;
  readonly #keyPath: string;

  private constructor(key: Uint8Array, keyPath: string) {
    this.#key = key;
    this.#keyPath = keyPath;
  }

  /**
   * Reads the key file, or creates it, readable by the user of the gateway alone.
   *
   * @throws FlurryError STORE_FAILED when it cannot be read or is no key; NO_SPACE
   */
  static async open(keyPath: string): Promise<Sealer> {
    const hex = await onFiles(keyPath, () => readOrCreate(keyPath));
    if (!/^[0-9a-f]{64}\n?$/.test(hex)) {
      throw new FlurryError("STORE_FAILED", `Key file "${keyPath}" does not hold a key of 64 hex digits`, {
        hint: "Put the file back that belongs to this data directory",
      });
    }
    return new Sealer(Buffer.from(hex.trimEnd(), "hex"), keyPath);
  }

  /** @param owner - what the value belongs to, such as `secret NAME` */
  seal(value: string, owner: string): Uint8Array {
    const nonce = randomBytes(NONCE_BYTES);
    const cipher = createCipheriv("aes-256-gcm", this.#key, nonce);
    cipher.setAAD(Buffer.from(owner));
    const text = [cipher.update(value, "utf8"), cipher.final()];
    return Buffer.concat([Uint8Array.of(FORMAT), nonce, ...text, cipher.getAuthTag()]);
  }

  /** @throws FlurryError STORE_FAILED when it was sealed with another key, for another owner, or has changed */
  unseal(sealed: Uint8Array, owner: string): string {
    try {
      if (sealed[0] !== FORMAT) throw new Error(`Its format is ${sealed[0]}`);
      const tagAt = sealed.length - TAG_BYTES;
      const nonce = sealed.subarray(1, 1 + NONCE_BYTES);
      const decipher = createDecipheriv("aes-256-gcm", this.#key, nonce, { authTagLength: TAG_BYTES });
      decipher.setAAD(Buffer.from(owner));
      decipher.setAuthTag(sealed.subarray(tagAt));
      const text = decipher.update(sealed.subarray(1 + NONCE_BYTES, tagAt));
      return Buffer.concat([text, decipher.final()]).toString("utf8");
    } catch (error) {
      throw new FlurryError("STORE_FAILED", `Cannot decrypt ${owner} with the key in "${this.#keyPath}"`, {
        cause: error,
        hint: "Put the key file back that belongs to this data directory, or set the value again",
      });
    }
  }
}

async function readOrCreate(path: string): Promise<string> {
  try {
    return await readFile(path, "utf8");
  } catch (error) {
    if (codeOf(error) !== "ENOENT") throw error;
  }
  const text = `${randomBytes(KEY_BYTES).toString("hex")}\n`;
  // Complete or not at all: a key that was cut short would make all that it sealed unreadable.
  const unfinished = `${path}.new`;
  {
    await using handle = await open(unfinished, "w", 0o600);
    await handle.writeFile(text);
    await handle.sync();
  }
  await rename(unfinished, path);
  await syncDirectory(dirname(path));
  return text;
}
