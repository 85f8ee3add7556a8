import {
  createPrivateKey,
  createPublicKey,
  generateKeyPairSync,
  type KeyObject,
  randomUUID,
  sign,
} from "node:crypto";
import { link, open, readdir, readFile, rm } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { codeOf, FlurryError } from "../../errors/errors.ts";
import { onFiles, syncDirectory } from "./files.ts";

/** The Ed25519 key by which an installation vouches for what it says (RFC 8032). */
export class SigningKey {
  /** PEM (RFC 8410). */
  readonly publicKey: string;
  readonly #key: KeyObject;

  private constructor(key: KeyObject) {
    this.#key = key;
    this.publicKey = createPublicKey(key).export({ type: "spki", format: "pem" }).toString();
  }

  /**
   * Reads the key file (PEM, PKCS #8), or creates it, readable by its user alone. Processes that do so at the
   * same time get the same key.
   *
   * @throws FlurryError STORE_FAILED when it cannot be read or is no such key; NO_SPACE
   */
  static async open(keyPath: string): Promise<SigningKey> {
    const text = await onFiles(keyPath, async () => {
      const known = await readOrCreate(keyPath);
      await removeUnfinished(keyPath);
      return known;
    });
    return new SigningKey(parse(text, keyPath));
  }

  /** Signature over the text's UTF-8, in base64. */
  sign(text: string): string {
    return sign(null, Buffer.from(text), this.#key).toString("base64");
  }
}

function parse(text: string, keyPath: string): KeyObject {
  try {
    const key = createPrivateKey(text);
    if (key.asymmetricKeyType === "ed25519") return key;
  } catch (cause) {
    throw notAKey(keyPath, cause);
  }
  throw notAKey(keyPath);
}

function notAKey(keyPath: string, cause?: unknown): FlurryError {
  return new FlurryError("STORE_FAILED", `Key file "${keyPath}" does not hold an Ed25519 key as PEM`, {
    cause,
    hint: "Put the file back that belongs to this data directory, or remove it: a new one is made then",
  });
}

async function readOrCreate(path: string): Promise<string> {
  const known = await readIfThere(path);
  if (known !== undefined) return known;
  const { privateKey } = generateKeyPairSync("ed25519");
  const unfinished = `${path}.${randomUUID()}`;
  try {
    {
      await using handle = await open(unfinished, "wx", 0o600);
      await handle.writeFile(privateKey.export({ type: "pkcs8", format: "pem" }));
      await handle.sync();
    }
    // Complete or not at all, and never in place of one that another process has made meanwhile, and which may
    // have removed this one.
    await link(unfinished, path).catch((error) => {
      if (codeOf(error) !== "EEXIST" && codeOf(error) !== "ENOENT") throw error;
    });
    await syncDirectory(dirname(path));
  } finally {
    await rm(unfinished, { force: true });
  }
  return await readFile(path, "utf8");
}

/** What killed processes have left; once there is a key, nobody needs them any more. */
async function removeUnfinished(path: string): Promise<void> {
  const start = `${basename(path)}.`;
  for (const name of await readdir(dirname(path))) {
    if (/^[0-9a-f-]{36}$/.test(name.slice(start.length)) && name.startsWith(start)) {
      await rm(join(dirname(path), name), { force: true });
    }
  }
}

async function readIfThere(path: string): Promise<string | undefined> {
  try {
    return await readFile(path, "utf8");
  } catch (error) {
    if (codeOf(error) === "ENOENT") return undefined;
    throw error;
  }
}
